"""OUT/report.html: the masks with the lowest scores, for people to look at first."""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from html import escape
from itertools import groupby
from operator import attrgetter

import numpy as np
from PIL import Image

from lpg_hf._rle import decode_window
from lpg_hf.boxes import box_slices
from lpg_hf.data.report import Report
from lpg_hf.data.sources import Source
from lpg_hf.visualize import draw_boxes


_NUM_SHOWN = 200
_CELL = 220  # pixels of the longer side of a cell
_MARGIN = 0.2  # of the longer side of the box, around it
# Names and labels come from annotation files: the page may load nothing and run nothing.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 14px sans-serif; margin: 2em }}
main {{ display: flex; flex-wrap: wrap; gap: 12px }}
figure {{ margin: 0; width: {cell}px }}
figcaption {{ overflow-wrap: anywhere; font-size: 12px }}
</style></head><body><h1>{title}</h1><p>{text}</p><main>
{cells}
</main></body></html>
"""


@dataclass(frozen=True)
class _Shown:
    """A mask as a block file has it: `index` of its image in the source, `item` an entry of its "objects"."""

    index: int
    score: float
    item: dict


def review_page(source: Source, entries: Iterable[dict]) -> bytes:
    """A page of its own (HTML with its images) of the 200 masks with the lowest scores, the lowest first.

    Args:
        source: of the images.
        entries: of the block files, one for each image of the source, in order.
    """
    scores: list[float] = []

    def masks() -> Iterator[_Shown]:
        for index, entry in enumerate(entries):
            for item in entry.get("objects", ()):
                scores.append(item["score"])
                yield _Shown(index, item["score"], item)

    lowest = nsmallest(_NUM_SHOWN, masks(), key=attrgetter("score"))
    cells: dict[int, str] = {}  # id of a _Shown -> its cell
    for index, of_image in groupby(sorted(lowest, key=attrgetter("index")), key=attrgetter("index")):
        record = source.record(index, Report())
        pixels = None if record is None else source.decode(record, Report())
        if record is not None and pixels is not None:
            cells |= {id(shown): _cell(source, record.file_name, pixels, shown.item) for shown in of_image}
    share = np.mean(np.array(scores) < 0.5) if scores else 0.0
    text = (
        f"{len(scores)} masks, mean score {np.mean(scores) if scores else 0:.2f}, {share:.0%} below 0.5. The score is "
        f"what the generator expects of its mask, in [0, 1]. Shown: the {len(cells)} lowest."
    )
    body = "\n".join(cells[id(shown)] for shown in lowest if id(shown) in cells)
    return _PAGE.format(title="Masks to look at first", cell=_CELL, text=text, cells=body).encode("utf-8", "replace")


def _cell(source: Source, file_name: str, pixels: np.ndarray, item: dict) -> str:
    """A figure: the surroundings of a box, with the box and its mask, and what they are."""
    label = item["category"] + 1
    x1, y1, x2, y2 = item["box"]
    margin = _MARGIN * max(x2 - x1, y2 - y1)
    window = box_slices((x1 - margin, y1 - margin, x2 + margin, y2 + margin), *pixels.shape[:2])
    mask = decode_window(item["rle"], window)
    image = Image.fromarray(pixels[window])
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    corner = np.array([window[1].start, window[0].start] * 2)
    shown = np.where(mask[..., None] > 0, shown, shown // 3)  # the mask in its own colours, the rest dark
    shown = draw_boxes(shown, (np.array([[x1, y1, x2, y2]]) - corner) * scale)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, "JPEG", quality=80)
    jpeg = base64.b64encode(buffer.getvalue()).decode()
    caption = escape(f"{item['score']:.2f} {source.classes[label - 1][1]}: {file_name}, object {item['id']}")
    return f'<figure><img alt="" src="data:image/jpeg;base64,{jpeg}"><figcaption>{caption}</figcaption></figure>'
