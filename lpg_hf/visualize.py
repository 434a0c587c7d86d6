"""Images for people: coloured label maps, boxes, and panels like Fig. 3 and 5 of the paper. Pillow only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lpg_hf.labels import IGNORE_INDEX, voc_palette


def colorize(label_map: np.ndarray) -> np.ndarray:
    """Colours of Pascal VOC for the labels.

    Args:
        label_map: (H, W) integer in 0..255.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return voc_palette()[np.asarray(label_map)]


def colour_index(labels: np.ndarray | int, ignored: int | None = None) -> np.ndarray:
    """The palette entries of labels of any size: the colours repeat above 254; `ignored` is 255."""
    labels = np.asarray(labels, dtype=np.int64)
    index = np.where(labels > 0, (labels - 1) % 254 + 1, 0)
    return index if ignored is None else np.where(labels == ignored, IGNORE_INDEX, index)


def overlay(image: np.ndarray, label_map: np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """The image with its labelled pixels tinted; the background (0) stays as it is.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) integer, 0 background, 255 ignored.
        alpha: share of the label's colour in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: image and label map differ in size.
    """
    image, label_map = np.asarray(image), np.asarray(label_map)
    if image.shape[:2] != label_map.shape:
        raise ValueError(
            f"image has (height, width) {image.shape[:2]}, but the label map has {label_map.shape}. "
            "Both must be in the frame of the image."
        )
    tinted = np.rint(image * (1 - alpha) + colorize(label_map) * alpha).astype(np.uint8)
    return np.where((label_map > 0)[..., None], tinted, image)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """The image with boxes, coloured by label and, with `names`, titled.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy in pixels, 0-based, end exclusive.
        labels: N labels, 1-based; all 1 if absent.
        names: class names, the first for label 1.
        font_size: of the titles in pixels; None: a sixteenth of the image.

    Returns:
        (H, W, 3) uint8 RGB, a copy.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / 160))
    font = _font(font_size or max(9, round(max(canvas.size) / 16)))
    palette = voc_palette()
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    labels = [1] * len(boxes) if labels is None else [int(label) for label in labels]
    for (x1, y1, x2, y2), label in zip(boxes, labels):
        colour = tuple(int(c) for c in palette[colour_index(label)])
        draw.rectangle([x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)], outline=colour, width=line)
        if names is not None:
            _write_on(draw, (x1 + line, y1 + line), names[label - 1], font, colour)
    return np.asarray(canvas)


def _write_on(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    colour: tuple[int, ...],
) -> None:
    """Text on a plate of the given colour, black or white, whichever reads better."""
    draw.rectangle(draw.textbbox(corner, text, font=font), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 128
    draw.text(corner, text, font=font, fill=(0, 0, 0) if bright else (255, 255, 255))


def panel(columns: list[str], rows: list[list[np.ndarray | None]], cell_width: int = 200) -> Image.Image:
    """One figure of images in a grid, with a heading over every column.

    Args:
        columns: headings.
        rows: per row one (H, W, 3) uint8 RGB image per column, or None for an empty cell.
        cell_width: width of a cell in pixels; images keep their proportions.

    Returns:
        RGB image.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """
    for i, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {i} of the panel has {len(row)} cells, but there are {len(columns)} columns.")
    gap = max(2, cell_width // 40)
    font = _font_that_fits(columns, cell_width)
    heading = sum(font.getmetrics()) + 2 * gap
    scaled = [[None if cell is None else _fit(cell, cell_width) for cell in row] for row in rows]
    heights = [max((cell.height for cell in row if cell is not None), default=cell_width // 2) for row in scaled]
    width = len(columns) * (cell_width + gap) + gap
    figure = Image.new("RGB", (width, heading + sum(heights) + gap * len(rows)), "white")
    draw = ImageDraw.Draw(figure)
    lefts = [gap + i * (cell_width + gap) for i in range(len(columns))]
    for left, text in zip(lefts, columns):
        draw.text((left + cell_width / 2, heading / 2), text, font=font, fill="black", anchor="mm")
    top = heading
    for row, height in zip(scaled, heights):
        for left, cell in zip(lefts, row):
            if cell is not None:
                figure.paste(cell, (left, top + (height - cell.height) // 2))
        top += height + gap
    return figure


def _font_that_fits(texts: list[str], width: int) -> ImageFont.FreeTypeFont:
    """The default font at the largest size, 8 to a tenth of the width, at which every text fits; else at 8."""
    for size in range(width // 10, 8, -1):
        font = _font(size)
        if all(font.getlength(text) <= width for text in texts):
            return font
    return _font(8)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's only font that has sizes
    return font


def _fit(image: np.ndarray, width: int) -> Image.Image:
    """Scaled to the width; small images are enlarged without blur, so that single pixels can be judged."""
    source = Image.fromarray(np.ascontiguousarray(image))
    height = max(1, round(source.height * width / source.width))
    enlarge = width > source.width
    return source.resize((width, height), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
