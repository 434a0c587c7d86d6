"""What tells the data of a run from other data, without opening an image."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, cast

from datasets import Dataset

from lpg_hf._files import fs_path
from lpg_hf.data.load import class_names


def digests(datasets: Mapping[str, Dataset | None]) -> dict[str, str]:
    """What `Run.begin` keeps of the data that a run is trained on and measured on, by their names; None: not used."""
    found = {}
    for name, rows in datasets.items():
        if rows is not None:
            found[name] = rows_digest(rows)
            if "mask" in rows.column_names:
                found[f"{name} masks"] = _mask_files_digest(rows)
    return found


def _mask_files_digest(rows: Dataset) -> str:
    """A hash of the sizes of the class masks' files, in the order of the rows; of what the rows embed, its bytes.

    The files are not read. Their times are left out: a copy on another machine has others, and a run resumes there.
    """
    digest = hashlib.sha256()
    for batch in rows.select_columns(["mask"]).with_format("arrow").iter(batch_size=1000):
        for mask in cast(Any, batch).to_pylist():
            path, content = mask["mask"]["path"], mask["mask"]["bytes"]
            digest.update(str(_file_size(path)).encode() if content is None else hashlib.sha256(content).digest())
            digest.update(b";")
    return digest.hexdigest()


def _file_size(path: str) -> int:
    """In bytes; -1 for a missing file."""
    try:
        return os.stat(fs_path(path)).st_size
    except FileNotFoundError:
        return -1


def rows_digest(rows: Dataset) -> str:
    """A hash of the images' names and sizes, their objects and the classes, in the order of the rows."""
    digest = hashlib.sha256(json.dumps(class_names(rows)).encode())
    columns = [name for name in ("file_name", "height", "width", "objects") if name in rows.column_names]
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        digest.update(json.dumps(cast(Any, batch).to_pylist(), default=str).encode())
    return digest.hexdigest()
