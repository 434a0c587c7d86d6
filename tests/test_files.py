"""Paths and atomic files."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lpg_hf._files import (
    LOCK_FILE,
    json_text,
    locked_folder,
    read_bytes,
    read_head,
    read_text,
    unfinished_folder,
    unicode_path,
    write_json,
)
from lpg_hf.data._formats.json_files import read_json
from lpg_hf.images import open_image


def test_json_is_readable_and_holds_names_that_are_no_unicode():
    content = {"犬": "caf\udce9.jpg", "quote": 'a "b" \\udce9'}
    text = json_text(content, indent=1)
    assert "犬" in text and "caf\\udce9.jpg" in text and json.loads(text.encode("utf-8")) == content


def test_paths_have_forward_slashes_whatever_the_system_says(monkeypatch):
    monkeypatch.setattr("os.sep", "\\")
    assert unicode_path("/data\\images") == "/data/images"


def test_a_stream_receives_the_bytes_and_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 1})
    assert os.read(reader, 100) == b'{\n  "a": 1\n}\n' and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    with pytest.raises(OSError):  # nobody reads
        write_json(pipe, {})
    (tmp_path / "null").symlink_to(os.devnull)
    write_json(tmp_path / "null", {})
    write_json(os.devnull, {})
    assert (tmp_path / "null").is_symlink() and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_standard_output_in_a_file_is_appended_to(tmp_path):
    code = "from lpg_hf._files import write_json\nprint('first', flush=True)\nwrite_json('/dev/stdout', [1])"
    with open(tmp_path / "out.txt", "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out.txt").read_text() == "first\n[\n  1\n]\n"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no folder in memory below /dev")
def test_a_link_in_the_folder_in_memory_is_replaced_as_anywhere():
    """/dev/shm is below /dev, where links lead to standard streams."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        target, link = Path(folder, "target"), Path(folder, "link")
        target.write_text("kept")
        link.symlink_to(target)
        write_json(link, 1)
        assert target.read_text() == "kept" and link.read_text() == "1\n" and not link.is_symlink()


def test_no_file_takes_the_name_of_a_folder_or_a_socket(tmp_path):
    server = socket.socket(socket.AF_UNIX)
    (tmp_path / "folder").mkdir()
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        server.bind(f"/proc/self/fd/{folder}/socket")  # a socket's path may not be long
        for name in ("folder", "socket"):
            with pytest.raises(ValueError, match=f"{name} is a .*which no file may replace. Choose another name"):
                write_json(tmp_path / name, {})
    finally:
        server.close()
        os.close(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "socket"]


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, lambda path: open_image(path, "a")])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises((ValueError, OSError), match="not a file"):
        read(tmp_path / "a.json")
    assert read_head(tmp_path / "a.json") == ""


def test_work_is_not_done_behind_a_link(tmp_path):
    """Such as one that came with a downloaded folder: what lies behind it would be deleted."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("kept")
    (tmp_path / ".out.unfinished").symlink_to("theirs")
    with pytest.raises(ValueError, match=".out.unfinished is a link to theirs, .* Delete the link"):
        with unfinished_folder(tmp_path / "out"):
            pass
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["file"]


def test_a_forked_process_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from lpg_hf._files import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child == 0: os.close(1); time.sleep(60)\n"
        "    print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, timeout=50)
    child = int(ended.stdout)
    try:
        assert ended.returncode == -signal.SIGKILL
        with locked_folder(tmp_path / "out"):
            os.kill(child, 0)  # It is still there.
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_owner_of_a_lock_is_named_though_it_has_not_written_its_name_yet(tmp_path):
    code = (
        "import fcntl, os, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); time.sleep(0.3)\n"
        "print('process 1 on host', file=lock, flush=True); time.sleep(60)"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "out" / LOCK_FILE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout.readline() == b"locked\n"
            with pytest.raises(ValueError, match=r"another process writes .* now \(process 1 on host\)\. Wait"):
                with locked_folder(tmp_path / "out"):
                    pass
        finally:
            owner.kill()
