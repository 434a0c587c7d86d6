"""The demo page: its functions, and the page itself in a headless chromium."""

import asyncio
import base64
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import HfApi, RepoCard
from PIL import Image

from lpg_hf.cli import main
from lpg_hf.data._formats.coco import read_coco
from lpg_hf.data.options import ReadOptions
from lpg_hf.data.report import Report
from lpg_hf.generators.base import Patch
from lpg_hf.label_maps import read_label_map
from tests.browser import CHROMIUM, Browser
from tests.conftest import tiny_lpg
from tests.hub_server import TOKEN, HubServer


ROOT = Path(__file__).parents[1]
SPACE = ROOT / "hub_cards" / "space"
HEIGHT, WIDTH = 90, 120
ADDRESS = re.compile(r"http://[\d.]+:\d+")


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'lpg_hf[demo]'")
    return importlib.import_module("lpg_hf.demo")


@pytest.fixture
def upload(demo):
    return demo.Upload("street.jpg", scene())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(scene()).save(tmp_path / "street.png")
    return tmp_path / "street.png"


@pytest.fixture(scope="module")
def page(demo, lpg_folder):
    return demo.Page(lpg_folder, device="cpu")


def scene() -> np.ndarray:
    """A bright disc on dark noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels[(x - 50) ** 2 + (y - 40) ** 2 < 20**2] = (230, 200, 40)
    return pixels


def text_of(message: str) -> str:
    return re.sub("<[^>]*>", "", message)


def run(
    page,
    upload,
    text: str,
    name: str = "box",
    per: str = "instance",
    threshold: float = 0.5,
    folder=None,
    request=None,
) -> dict:
    keys = ("message", "results", "overlay", "table", "tiles", "label_map", "png", "coco", "folder")
    return dict(zip(keys, page.run(upload, text, "object", name, per, threshold, folder, request), strict=True))


# Lines of boxes


@pytest.mark.parametrize(
    ("line", "box", "label"),
    [
        ("10 20 30 40", [10, 20, 30, 40], "thing"),
        ("10 20 30 40 cat", [10, 20, 30, 40], "cat"),
        ("  10,20,30,40,big  red cat ", [10, 20, 30, 40], "big red cat"),
        ("[10, 20, 30, 40]", [10, 20, 30, 40], "thing"),
        ("(1.5; .5; 3e1; 40.) <b>犬</b> | 'x'", [1.5, 0.5, 30, 40], "<b>犬</b> | 'x'"),
        ("-5 -5 30 40\tcat", [-5, -5, 30, 40], "cat"),
        ("10 20 30 40 50", [10, 20, 30, 40], "50"),
    ],
)
def test_a_line_is_four_numbers_and_perhaps_a_label(demo, line: str, box: list, label: str):
    assert demo._parse_boxes(f"\n{line}\n\n", "thing") == [(2, box, label)]


@pytest.mark.parametrize("line", ["foo", "1 2 3", "1 2 3 nan", "1 2 3 4cat", "1 2 x 4 cat", "{1 2 3 4}", "1 2 3 inf"])
def test_a_line_that_is_no_box_is_named(demo, line: str):
    with pytest.raises(
        ValueError, match=rf"^Line 2 is not a box: {re.escape(repr(line))}.*x1 y1 x2 y2 label, for example"
    ):
        demo._parse_boxes(f"1 2 3 4\n{line}\n5 6 7 8")


@pytest.mark.parametrize("line", [" " * 400, "1" * 400, "1 " * 3 + " " * 400 + "x", "[1,1,1,1" + " ]" * 200])
def test_a_long_line_takes_no_time(demo, line: str):
    start = time.perf_counter()
    with contextlib.suppress(ValueError):
        demo._parse_boxes(f"{line}1 1 1 1{line}x\n{line}")
    assert time.perf_counter() - start < 0.5


def test_too_many_boxes_and_too_long_labels_are_refused(demo):
    with pytest.raises(ValueError, match="101 boxes are more than the 100.*lpg-hf masks"):
        demo._parse_boxes("1 2 3 4\n" * 101)
    with pytest.raises(ValueError, match="label in line 1 has 61 characters; at most 60"):
        demo._parse_boxes("1 2 3 4 " + "w" * 61)


@pytest.mark.parametrize("box", ["200 5 300 50", "30 20 30 50", "30 20 10 40", "0 0 1e999 5"])
def test_a_box_that_is_empty_or_outside_is_named(demo, upload, box: str):
    with pytest.raises(ValueError, match="box in line 2 is empty or outside the image of 120 x 90 pixels.*x1 < x2"):
        demo.boxed_image(upload, demo._parse_boxes(f"1 2 3 4\n{box}"))


def test_boxes_are_clipped_and_labels_numbered_in_their_order(demo, upload):
    image, names = demo.boxed_image(upload, demo._parse_boxes("-5 10 40 400 dog\n1 2 3 4 cat\n2 2 9 9 dog"))
    assert names == ["dog", "cat"] and image.labels.tolist() == [1, 2, 1]
    assert image.boxes[0].tolist() == [0, 10, 40, HEIGHT]


# Drawing


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (7, 3), (2000, 3001), (1, 4000)])
def test_two_clicks_make_the_box_that_holds_both_pixels(demo, size: tuple[int, int]):
    upload = demo.Upload("a.png", np.zeros((*size, 3), dtype=np.uint8))
    width, height = demo.shown(upload.pixels).size
    assert max(width, height) <= demo.SHOWN_SIDE
    last = [width - 1, height - 1]
    assert demo._box_of_clicks(upload, [0, 0], last) == [0, 0, size[1], size[0]]
    for first, second in (([0, height - 1], [width - 1, 0]), (last, [0, 0])):
        assert demo._box_of_clicks(upload, first, second) == [0, 0, size[1], size[0]]
    x1, y1, x2, y2 = demo._box_of_clicks(upload, *[[width // 2, height // 2]] * 2)
    assert x1 < x2 and y1 < y2


def test_a_click_on_an_enlarged_image_is_one_pixel(demo, upload):
    assert demo.shown(upload.pixels).size == (8 * WIDTH, 8 * HEIGHT)
    assert demo._box_of_clicks(upload, [80, 16], [87, 23]) == [10, 2, 11, 3]
    assert demo._box_of_clicks(upload, [80, 16], [88, 24]) == [10, 2, 12, 4]


def test_clicks_undo_and_clear(demo, page, upload):
    def click(corner, text, at):
        return page.click(upload, corner, text, " cat\n", SimpleNamespace(index=at))

    plain = demo.draw(upload, "")
    corner, text, canvas, message = click(None, "", [80, 16])
    assert (corner, text, message) == ([80, 16], "", "") and not np.array_equal(canvas, plain)
    corner, text, canvas, message = click(corner, text, [400, 320])
    assert (corner, text, message) == (None, "10 2 51 41 cat", "")
    assert np.array_equal(canvas, demo.draw(upload, text))
    corner, _, _, _ = click(None, text, [5, 5])
    _, text, canvas, _ = page.undo(upload, corner, text, "cat")  # the click first, then the line
    assert text == "10 2 51 41 cat" and np.array_equal(canvas, demo.draw(upload, text))
    _, text, canvas, _ = page.undo(upload, None, "1 1 5 5\n" + text, "cat")
    assert text == "1 1 5 5"
    corner, text, canvas, message = page.clear(upload)
    assert (corner, text, message) == (None, "", "") and np.array_equal(canvas, plain)


def test_a_click_keeps_the_text_while_a_line_is_wrong(page, upload):
    corner, text, _, message = page.click(upload, [1, 1], "1 2 3", "cat", SimpleNamespace(index=[50, 50]))
    assert (corner, text) == (None, "1 2 3") and text_of(message).startswith("Line 1 is not a box")


def test_buttons_without_a_image_do_nothing(page):
    assert page.click(None, None, "1 2 3 4", "cat", SimpleNamespace(index=[5, 5]))[:2] == (None, "1 2 3 4")
    assert page.undo(None, None, "1 2 3 4\n5 6 7 8", "cat")[1] == "1 2 3 4"
    assert page.clear(None)[1] == ""


# Images


def test_a_second_image_drops_the_boxes_and_boxes_that_were_there_first_stay(page, photo: Path):
    upload, corner, text, canvas, hint, message, results = page.load(str(photo), None, "1 2 30 40 cat", "object")
    assert np.array_equal(upload.pixels, scene()) and text == "1 2 30 40 cat" and hint == message == ""
    assert canvas.shape == (8 * HEIGHT, 8 * WIDTH, 3) and results["visible"] is False
    again, corner, text, canvas, hint, message, _ = page.load(str(photo), upload, text, "object")
    assert (corner, text, hint, message) == (None, "", "", "")
    gone = page.load(None, again, "1 2 3 4", "object")
    assert gone[:6] == (None, None, "", None, "", "")


def test_first_boxes_that_do_not_fit_the_image_are_told(page, photo: Path):
    upload, _, text, canvas, hint, message, _ = page.load(str(photo), None, "500 2 600 40 cat", "object")
    assert upload is not None and canvas is not None and text == "500 2 600 40 cat"
    assert "line 1 is empty or outside the image of 120 x 90" in text_of(hint) and message == ""


def test_a_turned_image_is_shown_upright(page, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene()).save(tmp_path / "turned.jpg", exif=exif)
    assert page.load(str(tmp_path / "turned.jpg"), None, "", "")[0].pixels.shape == (WIDTH, HEIGHT, 3)


def test_files_that_are_no_image_or_too_large_are_refused_in_one_line(demo, page, photo: Path, tmp_path: Path):
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:-2000])
    Image.new("1", (9000, 6000)).save(tmp_path / "huge.png")
    for name, reason in (("notes", "of a known format"), ("cut", "cannot decode"), ("huge", "54000000 pixels")):
        upload, _, _, canvas, _, message, _ = page.load(str(tmp_path / f"{name}.png"), None, "", "")
        assert upload is None and canvas is None and str(tmp_path) not in message
        assert text_of(message).startswith("This image cannot be used: ") and reason in message
    assert demo.Page(max_pixels=WIDTH * HEIGHT).load(str(photo), None, "", "")[0] is not None
    assert demo.Page(max_pixels=WIDTH * HEIGHT - 1).load(str(photo), None, "", "")[0] is None


def test_gradio_leaves_the_file_to_us(demo):
    (field,) = [block for block in demo.build_demo().blocks.values() if block.elem_id == "image"]
    assert field.preprocess(SimpleNamespace(path="/a/b.png")) == "/a/b.png" and field.preprocess(None) is None


# Masks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no box yet"),
        ("\n  \n", "There is no box yet"),
        ("1 2 <script>alert(1)</script>", "Line 1 is not a box"),
        ("500 2 600 40", "The box in line 1 is empty or outside"),
        ("1 2 30 40\n1 2 30 40 a\ud800", "The label in line 2 is not Unicode text: &#x27;a\\ud800"),
    ],
)
def test_bad_boxes_give_a_message_and_no_result(page, upload, tmp_path, text: str, message: str):
    result = run(page, upload, text, folder=str(tmp_path))
    assert text_of(result["message"]).startswith(message) and "<script>" not in result["message"]
    assert result["results"]["visible"] is False and result["png"] is None and result["folder"] == str(tmp_path)


def test_masks_without_a_image_give_a_message(page):
    assert text_of(run(page, None, "1 2 3 4")["message"]).startswith("There is no image yet")


@pytest.mark.parametrize("name", ["lpg", "grabcut", "densecrf", "box"])
def test_files_hold_the_masks_that_are_shown(demo, page, upload, name: str):
    if name == "densecrf":
        pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed: pip install 'lpg_hf[crf]'")
    assert name in page.generators
    text = "25 15 75 65 disc\n80 60 110 85 corner / odd"
    result = run(page, upload, text, name)
    assert re.fullmatch(rf"2 masks by {name} in [\d.]+ s\..*", text_of(result["message"]))
    assert result["results"]["visible"] is True and len(result["tiles"]) == 2
    assert result["tiles"][1][1] == "2 corner / odd"

    label_map = read_label_map(result["png"])
    assert label_map.shape == (HEIGHT, WIDTH) and set(np.unique(label_map)) <= {0, 1, 2}
    label_map_shown = np.asarray(demo.shown(label_map, smooth=False))
    assert np.array_equal(result["label_map"], demo.colorize(label_map_shown))

    content = json.loads(Path(result["coco"]).read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == ["disc", "corner / odd"]
    assert content["images"] == [{"id": 1, "file_name": "street.jpg", "width": WIDTH, "height": HEIGHT}]
    found = demo._find_masks(upload, text, page.generator(name))
    for row, annotation, mask in zip(result["table"], content["annotations"], found.masks.masks, strict=True):
        assert annotation["segmentation"] == mask.rle and annotation["area"] == mask.area
        assert annotation["score"] == round(mask.score, 4) and annotation["fill_rate"] == round(mask.fill_rate, 4)
        assert row[1:3] == [round(mask.score, 3), round(mask.fill_rate, 3)]
    assert [row[3:] for row in result["table"]] == [["disc", "25 15 75 65"], ["corner / odd", "80 60 110 85"]]

    again = run(page, upload, text, name, folder=result["folder"])
    assert not Path(result["folder"]).exists() and Path(again["png"]).is_file()
    shutil.rmtree(again["folder"])


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 290 + ".png"])
def test_files_of_an_image_with_a_long_name_have_a_shorter_one(demo, page, upload, name: str):
    result = run(page, demo.Upload(name, upload.pixels), "10 10 50 50")
    stem = Path(result["png"]).name.removesuffix("_label_map.png")
    assert name.startswith(stem) and 190 < len(stem.encode()) <= 200
    assert json.loads(Path(result["coco"]).read_text(encoding="utf-8"))["images"][0]["file_name"] == name
    shutil.rmtree(result["folder"])


def test_a_class_that_is_no_unicode_text_is_written(demo, upload, tmp_path: Path):
    classes = ["a\ud800", "b"]  # as the config.json of a segmenter may have it
    result = demo._find_masks(upload, "10 10 50 50 b", demo.load_generator("box"), classes=classes)
    _, coco = demo._write_files(result, tmp_path)
    content = json.loads(coco.read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == classes


def test_files_that_cannot_be_written_give_a_message_and_leave_no_folder(
    demo, page, upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(*arguments, **options):
        raise OSError(28, "No space left on device", "/home/somebody/file")

    monkeypatch.setattr(demo, "write_coco", failing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = run(page, upload, "10 10 50 50", folder="earlier")
    assert "The server cannot make masks now" in result["message"] and result["folder"] == "earlier"
    assert not list(tmp_path.iterdir())


def test_our_own_reader_takes_the_coco_file(page, upload, tmp_path: Path):
    result = run(page, upload, "25 15 75 65 disc\n1 2 3.5 4 dot")
    Image.fromarray(upload.pixels).save(tmp_path / upload.name)
    report = Report()
    records = read_coco(result["coco"], tmp_path, ReadOptions(masks=True), report)
    (record,) = records
    assert [item.box for item in record.objects] == [(25, 15, 75, 65), (1, 2, 3.5, 4)]
    assert all(item.rle for item in record.objects) and not report.counts
    shutil.rmtree(result["folder"])


@pytest.mark.parametrize("per", ["instance", "class"])
@pytest.mark.parametrize("threshold", [0.25, 0.75])
def test_threshold_and_granularity_reach_the_generator(page, upload, monkeypatch, per: str, threshold: float):
    class Ramp:
        def patches(self, images, asked):
            assert asked == per
            foreground = np.tile(np.arange(0.5, 40, dtype=np.float32) / 40, (40, 1))
            yield 0, Patch(1, (0,), slice(0, 40), slice(0, 40), foreground)

    monkeypatch.setattr(page, "generator", lambda name: Ramp())
    result = run(page, upload, "0 0 40 40", per=per, threshold=threshold)
    assert result["table"][0][2] == 1 - threshold
    shutil.rmtree(result["folder"])


def test_a_box_without_a_mask_is_told(demo, page, upload, monkeypatch: pytest.MonkeyPatch):
    class Nothing:
        def patches(self, images, per):
            yield 0, Patch(1, (0,), slice(0, 4), slice(0, 4), np.zeros((4, 4), dtype=np.float32))

    monkeypatch.setattr(page, "generator", lambda name: Nothing())
    result = run(page, upload, "0 0 4 4")
    assert "Without a pixel: box 1; try a lower threshold" in text_of(result["message"])
    assert result["table"][0][1:3] == [0, 0]
    shutil.rmtree(result["folder"])


# Models


@pytest.fixture(scope="module")
def prob_folder(tmp_path_factory, lpg_folder):
    folder = tmp_path_factory.mktemp("stage") / "with_prob"
    shutil.copytree(lpg_folder, folder)
    tiny_lpg(use_class_prob=True).save_pretrained(folder)
    return folder


def test_with_a_segmenter_the_labels_are_its_classes(demo, upload, prob_folder, segmenter_folder):
    page = demo.Page(prob_folder, segmenter_folder, device="cpu")
    assert page.classes == ["cat", "dog", "cow"]
    result = run(page, upload, "25 15 75 65 Dog", "lpg", threshold=0.05)
    label_map = read_label_map(result["png"])
    assert label_map.any() and set(np.unique(label_map)) <= {0, 2} and result["table"][0][3] == "dog"
    shutil.rmtree(result["folder"])
    wrong = text_of(run(page, upload, "25 15 75 65 <horse>", "lpg")["message"])
    assert wrong == "The segmenter knows no class &#x27;&lt;horse&gt;&#x27; (line 1). Its classes are: cat, dog, cow."
    free = run(page, upload, "25 15 75 65 horse", "box")
    assert free["results"]["visible"] is True
    shutil.rmtree(free["folder"])


def test_models_that_cannot_work_are_refused_at_the_start(demo, prob_folder, segmenter_folder, tmp_path: Path):
    with pytest.raises(ValueError, match="trained with a segmenter's class probability: pass --segmenter"):
        demo.Page(prob_folder)
    with pytest.raises(ValueError, match="is for an LPG: pass --model"):
        demo.Page(segmenter=segmenter_folder)
    with pytest.raises(ValueError, match="'segformer'.*not an LPG"):
        demo.Page(segmenter_folder)
    with pytest.raises(FileNotFoundError, match="nowhere "):
        demo.Page(tmp_path / "nowhere")


def test_without_a_model_the_page_offers_what_the_package_has(demo):
    page = demo.Page()
    assert {"grabcut", "box"} <= set(page.generators) and page.generators[0] == "lpg"


def test_build_demo_gives_a_page_that_reports_to_nobody(demo, lpg_folder):
    blocks = demo.build_demo(lpg_folder, device="cpu")
    assert blocks.analytics_enabled is False
    assert {function.api_visibility for function in blocks.fns.values()} <= {"private", "undocumented"}


def test_missing_gradio_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lpg_hf.demo", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["demo"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "lpg-hf: the demo needs gradio, which is not installed: pip install 'lpg_hf[demo]'\n"
    )


# The served page


def serve(command: list[str], **environment: str) -> tuple[subprocess.Popen, str]:
    """Starts a server and waits for its address, the first that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-u", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "PYTHONPATH": str(ROOT)} | environment,
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if match := ADDRESS.search(line):
            return process, match[0]
    raise AssertionError("the server has ended: " + "".join(printed))


def stop(process: subprocess.Popen) -> int:
    process.terminate()
    try:
        return process.wait(30)
    finally:
        process.kill()
        process.stdout.close()


def test_the_space_serves_a_local_stage_offline(demo, lpg_folder, tmp_path: Path):
    shutil.copytree(SPACE, tmp_path / "space")
    process, address = serve(
        [str(tmp_path / "space" / "app.py")],
        LPG_MODEL=str(lpg_folder),
        GRADIO_SERVER_NAME="127.0.0.1",
        GRADIO_TEMP_DIR=str(tmp_path / "files"),
        OMP_NUM_THREADS="1",
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"{address}/config", timeout=30
        ) as answer:
            config = json.load(answer)
        (choices,) = [c["props"]["choices"] for c in config["components"] if c["props"].get("label") == "Generator"]
        assert choices[0] == ["lpg", "lpg"]
    finally:
        stop(process)


def test_the_space_can_be_pushed_as_it_is(tmp_path: Path):
    card = RepoCard.load(SPACE / "README.md").data.to_dict()
    assert card["sdk"] == "gradio" and (SPACE / card["app_file"]).is_file() and card["license"] == "apache-2.0"
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (extra,) = project["project"]["optional-dependencies"]["demo"]
    assert extra == f"gradio>={card['sdk_version'].rsplit('.', 1)[0]}"
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8").split() == [project["project"]["name"]]
    with HubServer() as hub:
        api = HfApi(endpoint=hub.endpoint, token=TOKEN)
        api.create_repo("org/boxes", repo_type="space", space_sdk="gradio")
        api.upload_folder(repo_id="org/boxes", repo_type="space", folder_path=SPACE, ignore_patterns="__pycache__/*")
        assert {"README.md", "app.py", "requirements.txt"} <= set(hub.files("org/boxes", kind="space"))


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("127.0.0.1:{}", None, 200),
        ("localhost:{}", "http://localhost:{}", 200),
        ("[::1]:{}", None, 200),
        ("evil.example:{}", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("127.0.0.1:{}", "http://evil.example", 403),
        ("127.0.0.1:{}", "http://127.0.0.1:1", 403),
        ("127.0.0.1:{}", "null", 403),
        ("", None, 403),
    ],
)
def test_only_its_own_pages_are_answered(demo, host: str, origin: str | None, status: int):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [(b"host", host.format(7860).encode())] + ([(b"origin", origin.format(7860).encode())] if origin else [])
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    served = demo._OwnPagesOnly(page, "0.0.0.0", demo._Visitors(), "/tmp/x")
    asyncio.run(served({"type": "http", "method": "GET", "headers": headers}, None, send))
    assert sent[0]["status"] == status


def test_a_visitor_cannot_send_requests_without_end_and_others_still_can(demo):
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    now, sent = [0.0], []
    served = demo._OwnPagesOnly(page, "127.0.0.1", demo._Visitors(lambda: now[0]), "/tmp/x")

    async def send(message):
        sent.append(message.get("status"))

    def ask(visitor: str, method: str = "POST") -> int:
        sent.clear()
        scope = {"type": "http", "method": method, "headers": [(b"host", b"127.0.0.1")], "client": (visitor, 1)}
        asyncio.run(served(scope, None, send))
        return sent[0]

    codes = [ask("10.0.0.1") for _ in range(demo.MAX_REQUESTS + 1)]
    assert codes == [200] * demo.MAX_REQUESTS + [429]
    assert ask("10.0.0.1", "GET") == ask("10.0.0.2") == 200
    now[0] = 61.0
    assert ask("10.0.0.1") == 200


def test_no_answer_names_a_path_of_the_server(demo):
    folder, seen = "/home/somebody/tmp/lpg_hf_demo_1", []

    async def page(scope, receive, send):
        seen.append((scope["path"], (await receive())["body"].decode()))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": f'{{"path": "{folder}/a.png"}}'.encode()})

    served = demo._OwnPagesOnly(page, "127.0.0.1", demo._Visitors(), folder)
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    def ask(path: str, body: str) -> str:
        async def receive():
            return {"type": "http.request", "body": body.encode()}

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        asyncio.run(served(scope, receive, send))
        return json.loads(sent[-1]["body"])["path"]

    name = ask("/run", "{}")
    assert "somebody" not in name and len(name) == len(f"{folder}/a.png")  # the stated length of the answer still fits
    assert ask(f"/file={name}", name) == name
    assert seen[-1] == (f"/file={folder}/a.png", f"{folder}/a.png")  # gradio gets its own name again


def test_a_visitor_who_has_computed_for_long_lets_others_go_first(demo, page, upload, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(page, "visitors", demo._Visitors(lambda: now[0]))
    page.visitors.computed("10.0.0.1", demo.MAX_SECONDS)
    first, other = (SimpleNamespace(client=SimpleNamespace(host=f"10.0.0.{n}")) for n in (1, 2))
    assert "1 mask by box" in run(page, upload, "10 10 50 50", name="box", request=first)["message"]
    assert page.visitors.admit("10.0.0.2")
    assert "Others are waiting" in run(page, upload, "10 10 50 50", name="box", request=first)["message"]
    assert "1 mask by box" in run(page, upload, "10 10 50 50", name="box", request=other)["message"]
    now[0] = 61.0
    assert "1 mask by box" in run(page, upload, "10 10 50 50", name="box", request=first)["message"]


def test_an_error_of_the_system_tells_a_visitor_no_path(demo, page, upload, monkeypatch: pytest.MonkeyPatch):
    def failing(*arguments, **options):
        raise OSError(28, "No space left on device", "/home/somebody/cache/file")

    monkeypatch.setattr(demo, "_find_masks", failing)
    message = run(page, upload, "10 10 50 50")["message"]
    assert "The server cannot make masks now" in message and "/home" not in message


def test_a_served_page_refuses_a_foreign_host_and_a_foreign_origin(demo, lpg_folder):
    command = ["-m", "lpg_hf.cli", "demo", "--model", str(lpg_folder), "--device", "cpu", "--port", str(free_port())]
    process, address = serve(command, OMP_NUM_THREADS="1")
    found = []
    for path, headers in (("/", {}), ("/", {"Host": "evil.example"}), ("/config", {"Origin": "http://evil.example"})):
        try:
            found.append(urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)).status)
        except urllib.error.HTTPError as error:
            found.append(error.code)
    assert stop(process) == 0 and found == [200, 403, 403]


def test_a_port_that_is_taken_is_one_line(demo):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = f"from lpg_hf.cli import main; main(['demo', '--port', '{port}'])"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"lpg-hf: no free port: {port} is taken. Choose one with --port."
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def address(demo, lpg_folder, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    temporary = tmp_path_factory.mktemp("tmp")
    command = ["-m", "lpg_hf.cli", "demo", "--model", str(lpg_folder), "--device", "cpu", "--port", str(free_port())]
    process, address = serve(command, TMPDIR=str(temporary), OMP_NUM_THREADS="1")
    yield address
    assert stop(process) == 0
    assert not [path for path in temporary.rglob("*") if path.is_file()]  # no image of a visitor is left behind


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetched(browser: Browser, selector: str) -> np.ndarray:
    """The image of an <img> of the page, as the server sends it."""
    data = browser.run(
        f"fetch(document.querySelector('{selector}').src).then(r => r.arrayBuffer())"
        ".then(b => btoa(Array.from(new Uint8Array(b), c => String.fromCharCode(c)).join('')))"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def opened(browser: Browser, address: str, photo: Path) -> None:
    """The page with an image in it."""
    browser.open(address)
    browser.wait("document.querySelector('#image input[type=file]') !== null", 60)
    browser.choose_file("#image input[type=file]", photo)
    browser.wait(f"document.querySelector('#image img')?.naturalWidth === {8 * WIDTH}")


def told(browser: Browser, start: str, where: str = "#message") -> str:
    """Waits for a message that begins so."""
    browser.wait(f"document.querySelector('{where}').innerText.trim().startsWith({start!r})")
    return browser.run(f"document.querySelector('{where}').innerText.trim()")


def test_a_box_in_the_browser_becomes_a_mask(demo, address: str, photo: Path, tmp_path: Path):
    with Browser(tmp_path / "profile") as browser:
        opened(browser, address, photo)
        browser.type("#boxes textarea", "25 15 75 65 disc <b>")
        browser.click("#run")
        told(browser, "1 mask by lpg")
        for name in ("overlay", "label_map", "tiles"):
            browser.wait(f"document.querySelector('#{name} img')?.complete")
        before, after = (fetched(browser, f"#{name} img").astype(int) for name in ("image", "overlay"))
        label_map = fetched(browser, "#label_map img")
        inside = np.zeros((8 * HEIGHT, 8 * WIDTH), dtype=bool)
        inside[8 * 15 : 8 * 65, 8 * 25 : 8 * 75] = True
        mask = label_map.any(axis=2)
        assert mask.any() and not mask[~inside].any()
        changed = np.abs(before - after).max(axis=2) > 30
        assert changed[mask].mean() > 0.5 and changed[~inside].mean() < 0.01  # box and title are in both
        assert "disc <b>" in browser.run("document.querySelector('#table').innerText")

        downloads = tmp_path / "downloads"
        downloads.mkdir()
        labels = read_label_map(browser.download("#png", downloads, "street_label_map.png"))
        assert np.array_equal(np.asarray(demo.shown(labels, smooth=False)) > 0, mask)
        coco = json.loads(browser.download("#coco", downloads, "street_coco.json").read_text(encoding="utf-8"))
        assert [annotation["bbox"] for annotation in coco["annotations"]] == [[25, 15, 50, 50]]

        folder = Path(os.environ.get("LPG_HF_ARTEFACTS") or tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        browser.screenshot(folder / "demo.png")
        print(f"screenshot: {folder / 'demo.png'}")
        assert browser.requests and all(
            url.startswith((f"{address}/", "data:", "blob:", "about:")) for url in browser.requests
        )


def test_boxes_are_drawn_with_clicks_on_a_phone(address: str, photo: Path, tmp_path: Path):
    def boxes(expected: str) -> None:
        browser.wait(f"document.querySelector('#boxes textarea').value === {expected!r}")

    with Browser(tmp_path / "profile", size=(390, 844), mobile=True) as browser:
        opened(browser, address, photo)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        browser.click("#run")
        told(browser, "There is no box yet")
        source = "document.querySelector('#image img').src"
        for first, second in (((0.26, 0.2), (0.6, 0.7)), ((0.7, 0.9), (0.9, 0.7))):
            shown = browser.run(source)
            browser.click("#image img", first)
            browser.wait(f"{source} !== {shown!r} && document.querySelector('#image img').naturalWidth > 0")
            count = browser.run("document.querySelector('#boxes textarea').value.length")
            browser.click("#image img", second)
            browser.wait(f"document.querySelector('#boxes textarea').value.length > {count}")
        lines = browser.run("document.querySelector('#boxes textarea').value").splitlines()
        corners = [[float(value) for value in line.split()[:4]] for line in lines]
        expected = np.array([[0.26, 0.2, 0.6, 0.7], [0.7, 0.7, 0.9, 0.9]]) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        assert (
            np.abs(np.array(corners) - expected).max() <= 1.5
        )  # a CSS pixel of the small window is a third of a pixel
        browser.click("#undo")
        boxes(lines[0])
        browser.click("#run")
        told(browser, "1 mask by lpg")
        browser.type("#boxes textarea", "1 2 3")
        assert told(browser, "Line 1 is not a box", "#hint").endswith("for example 10 20 110 140 cat.")
        browser.type("#boxes textarea", "")  # draws no box, which is right, while the button finds that there is none
        browser.click("#run")
        told(browser, "There is no box yet")
        browser.wait("document.querySelector('#hint').innerText.trim() === ''")
        assert told(browser, "There is no box yet")
        notes = tmp_path / "notes.png"
        notes.write_text("no image")
        browser.choose_file("#image input[type=file]", notes)
        assert told(browser, "This image cannot be used") == (
            "This image cannot be used: cannot open the image notes.png: it is not an image that Pillow knows."
        )
        browser.wait("document.querySelector('#image img') === null")
