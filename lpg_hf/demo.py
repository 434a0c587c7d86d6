"""The demo page: boxes on an image in the browser, masks back. `lpg-hf demo` and the Space of hub_cards/space show it.

The boxes are lines of text. Clicks on the image write such lines too, so that drawn and pasted boxes are the same. A
visitor's image and files live as long as the session, and the page contacts no other server.
"""

import functools
import html
import importlib.util
import ipaddress
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lpg_hf._files import json_text
from lpg_hf.boxes import box_slices
from lpg_hf.data._formats.coco import write_coco
from lpg_hf.data.records import BoxObject, Record
from lpg_hf.generators import load_generator
from lpg_hf.generators.base import GRANULARITIES, BoxedImage, GeneratorOptions, MaskGenerator
from lpg_hf.generators.lpg import LPGGenerator
from lpg_hf.images import read_rgb
from lpg_hf.label_maps import write_label_map
from lpg_hf.masks.assembly import AssemblyOptions, ImageMasks, assemble
from lpg_hf.masks.pipeline import checked_boxes
from lpg_hf.visualize import colorize, colour_index, draw_boxes, overlay


logger = logging.getLogger(__name__)

try:
    import gradio as gr  # pyright: ignore[reportMissingImports]  (an extra)
except ModuleNotFoundError as error:
    if error.name != "gradio":
        raise
    raise ImportError("the demo needs gradio, which is not installed: pip install 'lpg_hf[demo]'") from None


MAX_PIXELS = 50_000_000  # a visitor's image stays in memory
MAX_BOXES = 100
MAX_LABEL = 60  # characters
_MAX_STEM = 200  # bytes of an image's name in those of its results; a file system holds 255
SHOWN_SIDE = 960  # pixels of the image in the page
TILE_SIDE = 320  # pixels of a box in the gallery
FONT_SIZE = 28  # of the shown image's pixels
DEFAULT_LABEL = "object"
# How the page is served, here and in the Space. Only this many sessions, the last used, keep their images.
LAUNCH = {"max_file_size": "100mb", "state_session_capacity": 20, "ssr_mode": False, "footer_links": []}
BOX_FORMAT = "x1 y1 x2 y2 label"
# Of a visitor, which is an address: requests that change something, and computing while others wait, in one minute.
MAX_REQUESTS = 120
MAX_SECONDS = 20.0

# One pattern for a whole line would try every way to share out its blanks: seconds for 200 of them.
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_BETWEEN = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Upload:
    """A visitor's image.

    Attributes:
        name: of the file, without folders.
        pixels: (H, W, 3) uint8 RGB, upright.
    """

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class DemoResult:
    """The masks that a generator made for an image.

    Attributes:
        upload: the visitor's image.
        image: with its boxes; their labels are 1-based positions in `names`.
        names: class names.
        masks: one per box, and the label map.
    """

    upload: Upload
    image: BoxedImage
    names: list[str]
    masks: ImageMasks


def _parse_boxes(text: str, label: str = DEFAULT_LABEL) -> list[tuple[int, list[float], str]]:
    """Boxes as people write them, one a line: `x1 y1 x2 y2 [label]`, with spaces or commas between.

    Args:
        text: empty lines are skipped; brackets around the four numbers are allowed.
        label: of lines without one.

    Returns:
        Per box: number of its line, counted from 1; xyxy in pixels of the upright image; label.

    Raises:
        ValueError: a line that is not a box, a label that is too long or no Unicode text, or too many boxes.
    """
    parsed = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        words = _split_line(line.strip())
        if words is None:
            raise ValueError(
                f"Line {number} is not a box: {_shortened(line, 80)!r}. Write four numbers and, if you like, a label: "
                f"{BOX_FORMAT}, for example 10 20 110 140 cat."
            )
        corners, own = words
        own = " ".join((own or label).split()) or DEFAULT_LABEL
        if len(own) > MAX_LABEL:
            raise ValueError(f"The label in line {number} has {len(own)} characters; at most {MAX_LABEL} are allowed.")
        if re.search("[\ud800-\udfff]", own):  # which no answer to the browser can hold
            raise ValueError(f"The label in line {number} is not Unicode text: {own!r}. Write another one.")
        parsed.append((number, corners, own))
    if len(parsed) > MAX_BOXES:
        raise ValueError(
            f"{len(parsed)} boxes are more than the {MAX_BOXES} of this page; lpg-hf masks takes any number."
        )
    return parsed


def _split_line(line: str) -> tuple[list[float], str | None] | None:
    """The four numbers of a line and its label, which may be absent; None if it is not a box."""
    corners, position = [], len(line) - len(line[1:].lstrip() if line[:1] in ("[", "(") else line)
    for side in range(4):
        gap = _BETWEEN.match(line, position) if side else None
        number = _NUMBER.match(line, gap.end() if gap else position)
        if number is None or (side and gap is None):
            return None
        corners.append(float(number[0]))
        position = number.end()
    rest = line[position:]
    if rest.lstrip()[:1] in ("]", ")"):
        rest = rest.lstrip()[1:]
    gap = _BETWEEN.match(rest)
    return None if rest and gap is None else (corners, rest[gap.end() :] if gap else None)


def boxed_image(
    upload: Upload, boxes: list[tuple[int, list[float], str]], classes: Sequence[str] | None = None
) -> tuple[BoxedImage, list[str]]:
    """Checks boxes against their image and numbers their labels.

    Args:
        boxes: from `_parse_boxes`; reaching over the border is allowed.
        classes: the only labels allowed, upper or lower case; None: any, in the order of their first box.

    Returns:
        The image with its boxes, and the class names in the order of the labels.

    Raises:
        ValueError: a box is empty or outside the image, or a label is none of `classes`.
    """
    height, width = upload.pixels.shape[:2]
    names = list(classes or dict.fromkeys(label for _, _, label in boxes))
    label_of = {name.casefold() if classes else name: label for label, name in enumerate(names, start=1)}
    labels = []
    for number, box, label in boxes:
        try:
            checked_boxes([box], None, "xyxy", height, width)
        except ValueError:
            raise ValueError(
                f"The box in line {number} is empty or outside the image of {width} x {height} pixels: {_line(box)}. "
                f"Write {BOX_FORMAT} with x1 < x2 and y1 < y2."
            ) from None
        key = label.casefold() if classes else label
        if key not in label_of:
            raise ValueError(
                f"The segmenter knows no class {label!r} (line {number}). Its classes are: {', '.join(names[:40])}."
            )
        labels.append(label_of[key])
    return BoxedImage(
        upload.pixels, *checked_boxes([box for _, box, _ in boxes], labels, "xyxy", height, width)
    ), names


def _box_of_clicks(upload: Upload, first: Sequence[int], second: Sequence[int]) -> list[float]:
    """The box with two clicked pixels of the shown image as opposite corners; both belong to it.

    Args:
        first: x, y in the shown image, see `shown`.
        second: the same.

    Returns:
        xyxy in whole pixels of the image itself.
    """
    scale = np.array(upload.pixels.shape[1::-1]) / shown(upload.pixels).size
    corners = np.array([first, second])
    low, high = np.floor(corners.min(axis=0) * scale), np.ceil((corners.max(axis=0) + 1) * scale)
    return [float(value) for value in (*low, *np.minimum(high, upload.pixels.shape[1::-1]))]


def shown(pixels: np.ndarray, side: int = SHOWN_SIDE, *, smooth: bool = True) -> Image.Image:
    """An image or label map at its size in the page; small ones are enlarged by a whole number.

    Args:
        pixels: (H, W, 3) or (H, W) uint8.
        side: at most this many pixels high and wide.
        smooth: mix pixels when scaling down, which labels must not be.
    """
    upload = Image.fromarray(np.ascontiguousarray(pixels))
    scale = side / max(upload.size)
    scale = int(scale) if scale >= 1 else scale
    width, height = (max(1, round(length * scale)) for length in upload.size)
    kind = Image.Resampling.BOX if smooth and scale < 1 else Image.Resampling.NEAREST
    return upload.resize((width, height), kind)


def draw(upload: Upload, text: str, label: str = DEFAULT_LABEL, corner: Sequence[int] | None = None) -> np.ndarray:
    """The shown image with the boxes of `text`, and a mark at the first corner of the next one."""
    image, names = boxed_image(upload, _parse_boxes(text, label))
    canvas = np.asarray(shown(upload.pixels))
    canvas = _with_boxes(canvas, image, names)
    if corner is None:
        return canvas
    x, y = corner
    return draw_boxes(canvas, np.array([[x - 8, y - 8, x + 9, y + 9]]), [len(names) + 1])


def _find_masks(
    upload: Upload | None,
    text: str,
    generator: MaskGenerator,
    *,
    label: str = DEFAULT_LABEL,
    classes: Sequence[str] | None = None,
    per: str = "instance",
    threshold: float = 0.5,
) -> DemoResult:
    """The masks of the boxes of `text`; arguments as of `_parse_boxes`, `boxed_image` and `assemble`.

    Raises:
        ValueError: no image, no boxes, or invalid boxes; the message is for the visitor.
    """
    if upload is None:
        raise ValueError("There is no image yet: drop one on the field above, or click it to choose one.")
    boxes = _parse_boxes(text, label)
    if not boxes:
        raise ValueError("There is no box yet: click two opposite corners on the image, or write a line of numbers.")
    image, names = boxed_image(upload, boxes, classes)
    patches = (patch for _, patch in generator.patches([image], per))
    return DemoResult(upload, image, names, assemble(image, patches, per, AssemblyOptions(threshold=threshold)))


def _result_images(result: DemoResult) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, str]]]:
    """The images of a result.

    Returns:
        The image with label map and boxes, the coloured label map, and per box its window of the image, with its own
        mask tinted, and its title.
    """
    upload = np.asarray(shown(result.upload.pixels))
    label_map = np.asarray(shown(colour_index(result.masks.label_map).astype(np.uint8), smooth=False))
    tinted = _with_boxes(overlay(upload, label_map), result.image, result.names)
    tiles = []
    for number, (box, label, mask) in enumerate(
        zip(result.image.boxes, result.image.labels, result.masks.masks), start=1
    ):
        window = box_slices(box, *result.image.image.shape[:2])
        inside = mask.decode()[window] * colour_index(label).astype(np.uint8)
        tile = overlay(
            np.asarray(shown(result.image.image[window], TILE_SIDE)),
            np.asarray(shown(inside, TILE_SIDE, smooth=False)),
        )
        tiles.append((tile, f"{number} {result.names[label - 1]}"))
    return tinted, colorize(label_map), tiles


def _result_rows(result: DemoResult) -> list[list]:
    """The table: number, score, fill rate, label and corners of every box."""
    return [
        [number, round(mask.score, 3), round(mask.fill_rate, 3), result.names[label - 1], _line(box)]
        for number, (box, label, mask) in enumerate(
            zip(result.image.boxes.tolist(), result.image.labels.tolist(), result.masks.masks), start=1
        )
    ]


def _write_to_new_folder(result: DemoResult) -> tuple[str, Path, Path]:
    """A new temporary folder, and its files as of `_write_files`; no folder where they cannot be written."""
    folder = tempfile.mkdtemp(prefix="lpg_hf_demo_")
    try:
        return folder, *_write_files(result, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_files(result: DemoResult, folder: str | os.PathLike) -> tuple[Path, Path]:
    """Writes a result as the files that `lpg-hf masks` writes for a dataset.

    Returns:
        The label map, a palette PNG; and a COCO json with a mask, `score` and `fill_rate` for every box.
    """
    stem = Path(result.upload.name).stem
    while len(os.fsencode(stem)) > _MAX_STEM:
        stem = stem[:-1]
    png, coco = Path(folder) / f"{stem}_label_map.png", Path(folder) / f"{stem}_coco.json"
    write_label_map(png, result.masks.label_map)
    height, width = result.upload.pixels.shape[:2]
    objects = [
        BoxObject(tuple(box), label - 1, mask.area, rle=mask.rle)
        for box, label, mask in zip(result.image.boxes.tolist(), result.image.labels.tolist(), result.masks.masks)
    ]
    write_coco(
        coco,
        [Record(result.upload.name, result.upload.name, "1", (height, width), objects)],
        list(enumerate(result.names, start=1)),
    )
    content = json.loads(coco.read_text(encoding="utf-8"))
    for annotation, mask in zip(content["annotations"], result.masks.masks):
        annotation |= {"score": round(mask.score, 4), "fill_rate": round(mask.fill_rate, 4)}
    coco.write_text(json_text(content), encoding="utf-8")
    return png, coco


class Page:
    """The functions behind the page, one for all visitors; a visitor's state comes in and goes out.

    Args:
        model: LPG stage, a Hub id or a folder; None: the bundled one.
        segmenter: Hub id or folder, for an LPG that uses its class probability. Labels are then its class names.
        device: see `load_generator`.
        max_pixels: a larger image is refused.
        visitors: what each has used; None: nobody is limited.

    Attributes:
        generators: names of the generators that can be chosen, the best first.
        classes: the only labels that the LPG takes, or None.

    Raises:
        OSError: a folder or Hub id that does not exist.
        ValueError: the model is not an LPG, or does not fit the segmenter.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        segmenter: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        max_pixels: int = MAX_PIXELS,
        visitors: "_Visitors | None" = None,
    ):
        self.visitors = visitors or _Visitors()
        if segmenter is not None and model is None:
            raise ValueError(f"the segmenter {segmenter} is for an LPG: pass --model ID_OR_DIR (model=...) too.")
        self.max_pixels = max_pixels
        has_crf = importlib.util.find_spec("pydensecrf") is not None
        self.generators = ["lpg", "grabcut", *(["densecrf"] if has_crf else []), "box"]
        self.classes: list[str] | None = None
        lpg = LPGGenerator.from_pretrained(GeneratorOptions(model=model, segmenter=segmenter, device=device))
        self.generator: Callable[[str], MaskGenerator] = functools.cache(
            lambda name: lpg if name == "lpg" else load_generator(name, device=device)
        )
        if lpg.network.config.requires_class_prob and lpg.segmenter is None:
            raise ValueError(
                f"the LPG {model} was trained with a segmenter's class probability: pass --segmenter ID_OR_DIR "
                "(segmenter=...), or choose a stage without it."
            )
        if lpg.segmenter is not None:
            id2label = lpg.segmenter.model.config.id2label or {}
            self.classes = [name for _, name in sorted(id2label.items(), key=lambda pair: int(pair[0]))][1:]

    def load(self, path: str | None, upload: Upload | None, text: str, label: str) -> tuple:
        """A new image, or none. It removes the boxes of an earlier image, not boxes from before the first image."""
        text = text if upload is None else ""
        upload, message = None, ""
        if path is not None:
            try:
                upload = Upload(Path(path).name, read_rgb(path, max_pixels=self.max_pixels))
            except (OSError, ValueError) as error:
                reason = str(error).replace(path, Path(path).name)
                message = _problem(f"This image cannot be used: {reason}.")
        return upload, None, text, *self.redraw(upload, text, label), message, gr.update(visible=False)

    def click(
        self, upload: Upload | None, corner: list[int] | None, text: str, label: str, event: gr.SelectData
    ) -> tuple:
        """The first corner of a box is remembered; the second writes a line. Neither happens while a line is wrong."""
        canvas, hint = self.redraw(upload, text, label)
        if upload is None or hint:
            return None, text, canvas, hint
        if corner is None:
            corner = list(event.index)
        else:
            line = f"{_line(_box_of_clicks(upload, corner, event.index))} {' '.join(label.split())}".strip()
            corner, text = None, "\n".join([*filter(str.strip, text.splitlines()), line])
        return corner, text, *self.redraw(upload, text, label, corner)

    def undo(self, upload: Upload | None, corner: list[int] | None, text: str, label: str) -> tuple:
        """Removes the last click or line."""
        lines = [line for line in text.splitlines() if line.strip()]
        text = "\n".join(lines if corner is not None else lines[:-1])
        return None, text, *self.redraw(upload, text, label)

    def clear(self, upload: Upload | None) -> tuple:
        """Removes all boxes."""
        return None, "", *self.redraw(upload, "", "")

    def redraw(
        self, upload: Upload | None, text: str, label: str, corner: Sequence[int] | None = None
    ) -> tuple[np.ndarray | None, str]:
        """The image with the boxes of the text; or without them, and a hint at what is wrong with the text."""
        if upload is None:
            return None, ""
        try:
            return draw(upload, text, label, corner), ""
        except ValueError as error:
            return np.asarray(shown(upload.pixels)), _problem(error)

    def run(
        self,
        upload: Upload | None,
        text: str,
        label: str,
        name: str,
        per: str,
        threshold: float,
        folder: str | None,
        request: gr.Request | None = None,
    ) -> tuple:
        """The masks, or a message about what is missing."""
        start, visitor = time.perf_counter(), _address(request)
        if not self.visitors.may_compute(visitor):
            message = "Others are waiting, and you have had your share of this minute. Try again in a minute."
            return _problem(message), gr.update(visible=False), *[None] * 6, folder
        try:
            result = _find_masks(
                upload,
                text,
                self.generator(name),
                label=label,
                classes=self.classes if name == "lpg" else None,
                per=per,
                threshold=threshold,
            )
            written, png, coco = _write_to_new_folder(result)
        except (OSError, ValueError, ImportError) as error:
            return _problem(_for_visitors(error)), gr.update(visible=False), *[None] * 6, folder
        finally:
            self.visitors.computed(visitor, time.perf_counter() - start)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        tinted, coloured, tiles = _result_images(result)
        empty = [str(number) for number, mask in enumerate(result.masks.masks, start=1) if mask.area == 0]
        count = len(result.image.boxes)
        message = f"{count} mask{'s' * (count > 1)} by {name} in {time.perf_counter() - start:.2f} s." + (
            f" Without a pixel: box {', '.join(empty)}; try a lower threshold or another generator." if empty else ""
        )
        return (
            f"<p>{html.escape(message)}</p>",
            gr.update(visible=True),
            tinted,
            _result_rows(result),
            tiles,
            coloured,
            str(png),
            str(coco),
            written,
        )


@dataclass(frozen=True)
class _Inputs:
    """The fields in which a visitor chooses an image, boxes and a generator."""

    canvas: gr.Image
    undo: gr.Button
    clear: gr.Button
    label: gr.Textbox
    boxes: gr.Textbox
    hint: gr.HTML
    generator: gr.Radio
    per: gr.Radio
    threshold: gr.Slider
    run: gr.Button


@dataclass(frozen=True)
class _Outputs:
    """The fields that show a result."""

    message: gr.HTML
    results: gr.Column
    tinted: gr.Image
    table: gr.Dataframe
    tiles: gr.Gallery
    label_map: gr.Image
    png: gr.DownloadButton
    coco: gr.DownloadButton

    @property
    def fields(self) -> list:
        """In the order in which `Page.run` returns their values."""
        shown = [self.message, self.results, self.tinted, self.table, self.tiles, self.label_map]
        return [*shown, self.png, self.coco]


def build_demo(
    model: str | os.PathLike | None = None,
    segmenter: str | os.PathLike | None = None,
    *,
    device: str | None = None,
    max_pixels: int = MAX_PIXELS,
    visitors: "_Visitors | None" = None,
) -> gr.Blocks:
    """The page; arguments and errors as of `Page`. `.launch(**LAUNCH)` serves it."""
    page = Page(model, segmenter, device=device, max_pixels=max_pixels, visitors=visitors)
    known = "" if page.classes is None else f" The model `lpg` knows these labels: {', '.join(page.classes[:40])}."
    with gr.Blocks(title="Masks from boxes", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        gr.Markdown(
            "# Masks from boxes\nChoose an image, click two opposite corners of every object's box (or type the "
            "boxes), "
            f"and press *Make masks*.{known}"
        )
        inputs = _input_fields(page)
        _connect(page, inputs, _output_fields())
    return demo


def _input_fields(page: "Page") -> _Inputs:
    with gr.Row():
        with gr.Column(scale=3):
            canvas = gr.Image(
                label="Image",
                show_label=False,  # it would lie over a corner
                sources=["upload", "clipboard"],
                buttons=[],
                elem_id="image",
            )
            # gradio would open the file without our limits and messages; `load` takes its path, whatever is in it.
            # An update of its properties (gr.update, gr.skip) would make gradio build the field anew, without this.
            canvas.preprocess = _path_of
            with gr.Row():
                undo = gr.Button("Undo", size="sm", min_width=80, elem_id="undo")
                clear = gr.Button("Clear boxes", size="sm", min_width=80, elem_id="clear")
        with gr.Column(scale=2):
            label = gr.Textbox(
                page.classes[0] if page.classes else DEFAULT_LABEL,
                label="Label of the next box",
                max_length=MAX_LABEL,
                elem_id="label",
            )
            boxes = gr.Textbox(
                label="Boxes, one per line",
                info=f"{BOX_FORMAT} (pixels from the upper left corner; without a label, the one above)",
                placeholder="10 20 110 140 cat\n60 30 90 70 dog",
                lines=4,
                max_lines=12,
                elem_id="boxes",
            )
            # Beside `message`, because leaving the text for the button draws and runs at the same time.
            hint = gr.HTML(elem_id="hint", padding=False)
            generator = gr.Radio(page.generators, value=page.generators[0], label="Generator", elem_id="generator")
            per = gr.Radio(
                list(GRANULARITIES[::-1]),
                value="instance",
                label="Granularity",
                info="instance: every box on its own; class: boxes of one label share their foreground",
                elem_id="per",
            )
            threshold = gr.Slider(0.05, 0.95, 0.5, step=0.05, label="Threshold of the foreground probability")
            run = gr.Button("Make masks", variant="primary", elem_id="run")
    return _Inputs(canvas, undo, clear, label, boxes, hint, generator, per, threshold, run)


def _output_fields() -> _Outputs:
    message = gr.HTML(elem_id="message")
    with gr.Column(visible=False, elem_id="results") as results:
        with gr.Row():
            tinted = gr.Image(label="Masks and boxes", interactive=False, elem_id="overlay", buttons=["fullscreen"])
            label_map = gr.Image(
                label="Label map", interactive=False, format="png", elem_id="label_map", buttons=["fullscreen"]
            )
        table = gr.Dataframe(
            headers=["box", "score", "fill rate", "label", "x1 y1 x2 y2"],
            datatype=["number", "number", "number", "str", "str"],
            label="Score: mean foreground probability of the mask. Fill rate: share of the box that is mask",
            interactive=False,
            elem_id="table",
        )
        tiles = gr.Gallery(
            label="The mask of each box",
            columns=4,
            fit_columns=False,
            height=340,
            object_fit="contain",
            show_label=False,  # it would lie over the first
            elem_id="tiles",
            buttons=[],
        )
        with gr.Row():
            png = gr.DownloadButton("Label map (PNG)", elem_id="png")
            coco = gr.DownloadButton("COCO json", elem_id="coco")
    return _Outputs(message, results, tinted, table, tiles, label_map, png, coco)


def _connect(page: "Page", inputs: _Inputs, outputs: _Outputs) -> None:
    """What happens at each event of the page, and the state of a visitor's session."""
    private = {"api_visibility": "private", "show_progress": "hidden"}
    upload, corner = gr.State(None), gr.State(None)
    folder = gr.State(None, delete_callback=lambda path: path and shutil.rmtree(path, ignore_errors=True))
    canvas, boxes, label = inputs.canvas, inputs.boxes, inputs.label
    edited = [corner, boxes, canvas, inputs.hint]
    replaced = [upload, *edited, outputs.message, outputs.results]
    # Shows its progress, so that nobody clicks on the browser's own copy, whose pixels may differ from those of
    # `shown`.
    canvas.upload(page.load, [canvas, upload, boxes, label], replaced, api_visibility="private")
    canvas.clear(functools.partial(page.load, None), [upload, boxes, label], replaced, **private)
    # "multiple": a click during an earlier one counts too (only a third within one round trip is lost).
    canvas.select(page.click, [upload, corner, boxes, label], edited, trigger_mode="multiple", **private)
    inputs.undo.click(page.undo, [upload, corner, boxes, label], edited, trigger_mode="multiple", **private)
    inputs.clear.click(page.clear, [upload], edited, **private)
    boxes.blur(page.redraw, [upload, boxes, label], [canvas, inputs.hint], **private)
    inputs.run.click(
        page.run,
        [upload, boxes, label, inputs.generator, inputs.per, inputs.threshold, folder],
        [*outputs.fields, folder],
        api_visibility="private",
        show_progress_on=[outputs.message],
    )


def serve(
    model: str | os.PathLike | None = None,
    segmenter: str | os.PathLike | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str | None = None,
    max_pixels: int = MAX_PIXELS,
    log: Callable[[str], None] = print,
) -> None:
    """Serves the page until the process ends; its temporary files are deleted then.

    Args:
        host: "0.0.0.0" admits other machines.
        port: None: the first free one from 7860 on.
        log: gets the address.

    Raises:
        OSError: the port is taken, or as of `Page`.
        ValueError: as of `Page`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="lpg_hf_demo_") as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        visitors = _Visitors()
        guard = {"host": host, "visitors": visitors, "folder": folder}
        demo = build_demo(model, segmenter, device=device, max_pixels=max_pixels, visitors=visitors)
        try:
            _, address, _ = demo.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                app_kwargs={"middleware": [(_OwnPagesOnly, (), guard)]},
                **LAUNCH,
            )
        except OSError as error:
            if "empty port" not in str(error):
                raise
            raise OSError(f"no free port: {port or 'all from 7860 on'} is taken. Choose one with --port.") from None
        log(f"the demo is at {address} (stop it with Ctrl-C)")
        demo.block_thread()


class _Visitors:
    """What each visitor has used in the last minute; a visitor is an address. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.lock = clock, threading.Lock()
        # Address -> times and amounts: of requests, and of seconds of computing.
        self.requests: dict[str, deque[tuple[float, float]]] = {}
        self.seconds: dict[str, deque[tuple[float, float]]] = {}

    def admit(self, visitor: str) -> bool:
        """Counts a request that changes something; False: there were too many."""
        with self.lock:
            if _used(self.requests, visitor, self.clock()) >= MAX_REQUESTS:
                return False
            self.requests.setdefault(visitor, deque()).append((self.clock(), 1.0))
            return True

    def may_compute(self, visitor: str) -> bool:
        """Whether it is a visitor's turn: alone there is no limit, beside others a share of the time."""
        with self.lock:
            now = self.clock()
            others = any(_used(self.requests, other, now) for other in list(self.requests) if other != visitor)
            return not others or _used(self.seconds, visitor, now) < MAX_SECONDS

    def computed(self, visitor: str, seconds: float) -> None:
        """Counts the time of an answer."""
        with self.lock:
            self.seconds.setdefault(visitor, deque()).append((self.clock(), seconds))


def _used(amounts: dict[str, deque[tuple[float, float]]], visitor: str, now: float) -> float:
    """The sum of the last minute; what is older is forgotten, and so is a visitor who has nothing left."""
    recent = amounts.get(visitor, deque())
    while recent and recent[0][0] < now - 60:
        recent.popleft()
    if not recent:
        amounts.pop(visitor, None)
    return sum(amount for _, amount in recent)


def _address(request: "gr.Request | None") -> str:
    client = getattr(request, "client", None)
    return getattr(client, "host", None) or ""


def _for_visitors(error: Exception) -> str:
    """A message for a visitor: errors of the system name files of the server, which are the log's business."""
    if isinstance(error, OSError):
        logger.warning("no masks were made: %s", error)
        return "The server cannot make masks now; its log says why. Try another generator, or try later."
    return str(error)


class _OwnPagesOnly:
    """Answers only what asks for this server by its own name, from its own pages, and not too often; names no path.

    A page of another site can name this machine with a domain of its own (DNS rebinding), or send requests to it. The
    names are those of this machine, addresses in numbers, and `host`; a page's origin must be the host that it asks.
    gradio names the page's files by their paths in `folder`; outside they have another name, of the same length.
    """

    def __init__(self, app: Callable, host: str, visitors: _Visitors, folder: str):
        self.app, self.visitors = app, visitors
        self.folder = folder.encode()
        self.alias = b"/demo".ljust(len(self.folder), b"-")[: len(self.folder)]
        self.names = {"localhost", socket.gethostname().lower(), host.lower()}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        refused = None
        if scope["type"] in ("http", "websocket"):
            refused = self._refusal(scope)
        if refused is None and scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, text = refused
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": text})

    async def _answer(self, scope: dict, receive: Callable, send: Callable) -> None:
        """The app's answer, with the alias in place of the folder; the other way round in the request."""
        has_json = dict(scope["headers"]).get(b"content-type", b"").startswith(b"application/json")
        rewritten = False

        async def inwards() -> dict:
            message = await receive()
            if has_json and message["type"] == "http.request":
                message = message | {"body": message.get("body", b"").replace(self.alias, self.folder)}
            return message

        async def outwards(message: dict) -> None:
            nonlocal rewritten
            if message["type"] == "http.response.start":
                kind = dict(message.get("headers", ())).get(b"content-type", b"")
                rewritten = kind.startswith((b"application/json", b"text/event-stream", b"text/html"))
            elif rewritten:
                message = message | {"body": message.get("body", b"").replace(self.folder, self.alias)}
            await send(message)

        path = scope.get("path", "").replace(self.alias.decode(), self.folder.decode())
        raw_path = (scope.get("raw_path") or b"").replace(self.alias, self.folder)
        await self.app(scope | {"path": path, "raw_path": raw_path}, inwards, outwards)

    def _refusal(self, scope: dict) -> tuple[int, bytes] | None:
        """Status and text of the answer to what is not served; None: it is."""
        if not self._is_ours(dict(scope["headers"])):
            return 403, b"this page is not served under that name"
        visitor = (scope.get("client") or ("",))[0]
        if scope.get("method", "POST") == "POST" and not self.visitors.admit(visitor):
            return 429, b"too many requests; wait a minute"
        return None

    def _is_ours(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host:
            return False
        name = re.sub(r":\d*$", "", host)
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self.names
        return True


def _path_of(payload: "gr.components.image.ImageData | None") -> str | None:
    return None if payload is None else payload.path


def _with_boxes(canvas: np.ndarray, image: BoxedImage, names: Sequence[str]) -> np.ndarray:
    """The shown image with the boxes drawn in."""
    factors = np.array(canvas.shape[1::-1]) / image.image.shape[1::-1]
    titles = [_shortened(name, 20) for name in names]
    return draw_boxes(canvas, image.boxes * np.tile(factors, 2), image.labels.tolist(), titles, FONT_SIZE)


def _line(box: Sequence[float]) -> str:
    return " ".join(f"{value:.10g}" for value in box)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _problem(error: object) -> str:
    return f'<p role="alert" style="color: #b91c1c; font-weight: 600">{html.escape(str(error))}</p>'
