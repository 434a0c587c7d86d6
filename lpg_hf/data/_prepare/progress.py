"""What a preparation is asked for, and what of it is finished."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lpg_hf._files import fs_path, read_text, write_json
from lpg_hf.data._prepare.archives import Archive, check_archive


logger = logging.getLogger(__name__)

STATE_FILE = "prepared.json"


@dataclass(frozen=True)
class PrepareOptions:
    """Where the archives are, and what becomes of them.

    Attributes:
        root: the folder to write to (DATA).
        archives: folder of the archives; None: root/archives.
        limit: images per split, evenly over the split; None: all.
        long_side: larger images become smaller copies, with their boxes and masks; None: as they are.
        check: compare archives with the published sizes and checksums.
        log: called with each line for the user.
    """

    root: Path
    archives: Path | None = None
    limit: int | None = None
    long_side: int | None = None
    check: bool = True
    log: Callable[[str], None] = field(default=logger.info, compare=False)

    def __post_init__(self):
        for name in ("limit", "long_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def archive_folder(self) -> Path:
        return self.root / "archives" if self.archives is None else self.archives

    @property
    def is_copy(self) -> bool:
        """Whether images and annotations are written as they are in the archives."""
        return self.limit is None and self.long_side is None


class Progress:
    """What is finished in one of the three folders, kept in its `prepared.json`."""

    def __init__(self, folder: Path, options: PrepareOptions):
        self.folder, self.options = folder, options
        self.path = folder / STATE_FILE
        asked = {"limit": options.limit, "long_side": options.long_side}
        self.content = {"options": asked, "checked": {}, "finished": {}}
        if os.path.isfile(fs_path(self.path)):
            self.content = json.loads(read_text(self.path))
            if self.content["options"] != asked:
                raise ValueError(
                    f"{folder} was prepared with {self.content['options']}, and {asked} is asked for now. "
                    "Pass the same options, another --out, or delete the folder."
                )

    def check(self, path: Path, archive: Archive) -> None:
        """`check_archive`, once for a file of this size and time."""
        if not self.options.check:
            self.options.log(f"{archive.name}: not checked (--no-check)")
            return
        stat = os.stat(fs_path(path))
        seen = [stat.st_size, stat.st_mtime_ns]
        if self.content["checked"].get(archive.name) != seen:
            self.options.log(check_archive(path, archive))
            self.content["checked"][archive.name] = seen
            write_json(self.path, self.content)

    def is_finished(self, piece: str) -> bool:
        """Whether a sub-folder is finished and still holds as many files; says so."""
        recorded = self.content["finished"].get(piece)
        if recorded is None or recorded != _num_files(self.folder / piece):
            return False
        self.options.log(f"{self.folder / piece}: skipped, its {recorded:,} files are finished")
        return True

    def finish(self, piece: str) -> None:
        self.content["finished"][piece] = _num_files(self.folder / piece)
        write_json(self.path, self.content)
        self.options.log(f"{self.folder / piece}: {self.content['finished'][piece]:,} files")


def _num_files(folder: Path) -> int:
    if not os.path.isdir(fs_path(folder)):
        return 0
    with os.scandir(fs_path(folder)) as entries:
        return sum(entry.is_file() and not entry.name.startswith(".") for entry in entries)
