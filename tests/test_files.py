"""Paths and atomic files."""

import json

from lpg_hf.files import json_text, unicode_path


def test_json_is_readable_and_holds_names_that_are_no_unicode():
    content = {"犬": "caf\udce9.jpg", "quote": 'a "b" \\udce9'}
    text = json_text(content, indent=1)
    assert "犬" in text and "caf\\udce9.jpg" in text and json.loads(text.encode("utf-8")) == content


def test_paths_have_forward_slashes_whatever_the_system_says(monkeypatch):
    monkeypatch.setattr("os.sep", "\\")
    assert unicode_path("/data\\images") == "/data/images"
