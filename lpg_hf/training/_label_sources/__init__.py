"""The compared methods as sources of the label maps that a segmenter is trained on: a module per paper."""

from lpg_hf.generators import GENERATORS, check_generator
from lpg_hf.training._label_sources.base import LabelSource


# What follows a colon is a number of draws, a file or a folder.
LABEL_SOURCES = (
    "bbox-rect",
    "bbox-seg",
    "bbox-em",
    "sdi-box",
    "sdi-boxi",
    "sdi-grabcut[:DRAWS]",
    "sdi-mcg:PROPOSALS",
    "sdi-mg:PROPOSALS",
    "bcm",
    "boxsup:PROPOSALS",
    "folder:DIR",
)
_GENERATED = tuple(name for name in GENERATORS if name not in ("lpg", "box"))


def check_label_source(name: str) -> None:
    """Raises ValueError if no source has this name, or one lacks what has to follow its colon."""
    kind, _, rest = name.partition(":")
    if kind in {known.partition(":")[0] for known in _GENERATED}:
        check_generator(name)
        return
    known = {entry.partition(":")[0].partition("[")[0]: entry for entry in LABEL_SOURCES}
    takes = known.get(kind, "").partition(":")[2]
    draws = kind == "sdi-grabcut" and rest
    if kind not in known or bool(rest) != bool(takes) and kind != "sdi-grabcut" or draws and not _is_count(rest):
        raise ValueError(
            f"labels={name!r} is unknown. Choose one of lpg, {', '.join((*LABEL_SOURCES, *_GENERATED))}; DRAWS is a "
            "number, PROPOSALS a json file or a folder, DIR a folder of label maps."
        )


def load_label_source(name: str, overlap_rule: str = "rate") -> LabelSource:
    """A source by its name.

    Args:
        name: one of `LABEL_SOURCES`, or a generator that needs no training, such as grabcut.
        overlap_rule: which class keeps a pixel that several claim, see `Fusion`; of the generators.

    Raises:
        ValueError: an unknown name.
        ImportError: the dense CRF is not installed.
        OSError: a file or folder that does not exist.
    """
    from lpg_hf.training._label_sources import bcm, boxsup, folder, generated, sdi, wssl

    check_label_source(name)
    kind, _, rest = name.partition(":")
    if kind == "bbox-rect":
        return wssl.BboxRect()
    if kind == "bbox-em":
        return wssl.BboxEM()
    if kind in ("sdi-box", "sdi-boxi"):
        return sdi.SDIBox(centre_only=kind == "sdi-boxi")
    if kind == "sdi-grabcut":
        return sdi.SDIGrabCut(int(rest)) if rest else sdi.SDIGrabCut()
    if kind in ("sdi-mcg", "sdi-mg"):
        return sdi.SDIProposal(rest, with_grabcut=kind == "sdi-mg")
    if kind == "bcm":
        return bcm.BCM(overlap_rule)
    if kind == "boxsup":
        return boxsup.BoxSup(rest)
    if kind == "folder":
        return folder.LabelFolder(rest)
    return generated.Generated("densecrf" if kind == "bbox-seg" else name, overlap_rule)


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) > 0
