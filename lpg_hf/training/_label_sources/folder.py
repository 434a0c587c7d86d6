"""Label maps that lie in a folder, from whatever made them."""

from pathlib import Path

import numpy as np
from datasets import Dataset

from lpg_hf.label_maps import mask_name, read_label_map
from lpg_hf.training._label_sources.base import LabelSource


class LabelFolder(LabelSource):
    """Palette or grey PNG files, one per image, under the image's relative path with the suffix .png.

    They are copied into the run, so that what it was trained on stays with it.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"labels=folder:{folder}: there is no such folder.")

    def check(self, rows: Dataset) -> None:
        """See `LabelSource.check`."""
        names = [mask_name(name) for name in rows["file_name"][:]]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.folder} lacks the label maps of {len(missing)} of {len(names)} target images, such as "
                f"{missing[0]}. Each has the relative path of its image, with the suffix .png."
            )

    def label_map(self, row: dict, image: np.ndarray, probs: np.ndarray | None) -> np.ndarray:
        """See `LabelSource.label_map`."""
        return read_label_map(self.folder / mask_name(row["file_name"]))
