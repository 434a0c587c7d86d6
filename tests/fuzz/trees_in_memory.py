"""The small exports of `tests/data`, held in memory so that thousands of changed copies are written quickly."""

import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from mutations import CHANGES, Change, changed_bytes, changed_json, changed_text, json_bytes


sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from tool_trees import OTHER_TREES, TOOL_TREES  # noqa: E402
from trees import CocoTree, VocTree, YoloTree, make_image, voc_object, voc_xml  # noqa: E402


_RLE = {"size": [40, 60], "counts": [488, 16, 24, 16, 1856]}
_TEXT_RLE = {"size": [40, 60], "counts": "X?P1h0`NP1"}


def rich_coco(root: Path) -> None:
    """All kinds of masks, ids and optional fields."""
    tree = CocoTree(root)
    tree.add_image("sub/b.png", 2, license=1)
    tree.content["annotations"] += [
        tree.annotation(id=2, image_id=2, category_id=7, segmentation=_RLE),
        tree.annotation(id=3, image_id=2, segmentation=_RLE, iscrowd=1),
        tree.annotation(id=4, image_id=2, segmentation=..., bbox=[30, 10, 20, 20]),
        tree.annotation(id=5, image_id=1, bbox=..., segmentation=[[30, 10, 50, 12, 40, 30], [1, 1, 9, 1, 9, 9, 1, 9]]),
    ]
    tree.content["categories"].append({"id": 7, "name": "red", "supercategory": "colour"})
    tree.content["info"] = {"year": 2024, "description": "made by hand", "version": 1.0}
    tree.content["licenses"] = [{"id": 1, "name": "CC BY 4.0", "url": "https://a.b/c"}]
    tree.write()


def rich_voc(root: Path) -> None:
    """Class masks, lists, parts and flags."""
    tree = VocTree(root)
    tree.add(
        "b", voc_xml("b.png", objects=[voc_object(), voc_object("red", (5, 5, 20, 20), "<difficult>1</difficult>")])
    )
    (root / "classes.txt").write_text("background\nthing\nred\n")
    tree.add_mask("a")
    tree.add_mask("b")
    tree.add_list("train", "a", "b")


def rich_yolo(root: Path) -> None:
    """Boxes, polygons and a data.yaml with splits."""
    tree = YoloTree(root)
    (root / "classes.txt").unlink()
    tree.add("b", "1 0.2 0.2 0.6 0.2 0.6 0.7\n0 0.5 0.5 0.2 0.3\n", split="train")
    tree.add("c", "0 0.5 0.5 0.2 0.3\n", split="val")
    tree.write("data.yaml", "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: thing\n  1: red\n")


# Kind -> layouts that its inputs are changed copies of.
LAYOUTS: dict[str, list[Callable[[Path], None]]] = {}
for _kind, _make, _ in [*TOOL_TREES.values(), *OTHER_TREES.values()]:
    if _kind != "dataset":
        LAYOUTS.setdefault(_kind, []).append(_make)
for _kind, _make in {"coco": rich_coco, "voc": rich_voc, "yolo": rich_yolo}.items():
    LAYOUTS[_kind] += [_make] * 4


@cache
def files_of(make: Callable[[Path], None]) -> dict[str, bytes]:
    """Relative name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        make(root)
        return {
            path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
        }


@cache
def _content(data: bytes) -> object:
    return json.loads(data)


def changed_file(name: str, data: bytes, changes: Sequence[Change]) -> bytes:
    """A changed copy of a file, by what it holds; the first change also says on which level."""
    level = changes[0][1] // 100 % 10
    if level == 0 or not name.endswith(
        (".json", ".txt", ".xml", ".csv", ".yaml", ".ini", ".names", ".data", ".jsonl")
    ):
        return changed_bytes(data, changes)
    if name.endswith(".json") and level < 9:
        return json_bytes(changed_json(copy.copy(_content(data)), changes))
    return changed_text(data.decode(), changes).encode("utf-8", "surrogatepass")


def changed_tree(root: Path, make: Callable[[Path], None], which: int, changes: Sequence[Change]) -> None:
    """Writes a layout to an empty folder, one of its files changed: nearly always not an image."""
    if root.exists():
        shutil.rmtree(root)
    files = files_of(make)
    labels = [name for name in files if not name.endswith((".png", ".jpg"))]
    chosen = sorted(files)[which % len(files)] if which % 20 == 0 else labels[which % len(labels)]
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed_file(name, data, changes) if name == chosen else data)


def inputs_of(kind: str) -> st.SearchStrategy:
    """(layout, which file, changes, what is done with it)."""
    return st.tuples(st.sampled_from(LAYOUTS[kind]), st.integers(0, 999), CHANGES, st.integers(0, 99))


__all__ = ["LAYOUTS", "CocoTree", "changed_file", "changed_tree", "files_of", "inputs_of", "make_image", "voc_xml"]
