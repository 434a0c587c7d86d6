import errno
import io
import os
import pickle
import zipfile

import pytest
import torch

from lpg_hf._weight_files import write_tensors
from lpg_hf.training._checkpoint import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    saved = Checkpoints(tmp_path / "c")
    for step in (2, 4, 10):
        saved.save({"step": step, "model": {"w": torch.full((64,), float(step))}})
    return saved


def newest(checkpoints):
    return checkpoints.folder / "step_10.pt"


def test_the_newest_is_taken_and_only_the_last_are_kept(checkpoints):
    assert checkpoints.load()["step"] == 10
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step_10.pt", "step_4.pt"]


@pytest.mark.parametrize("share", [0, 0.3, 0.95])
def test_a_truncated_newest_checkpoint_is_skipped_with_a_message(checkpoints, share):
    data = newest(checkpoints).read_bytes()
    newest(checkpoints).write_bytes(data[: int(share * len(data))])
    said = []
    assert checkpoints.load(said.append)["step"] == 4
    assert len(said) == 1 and "step_10.pt" in said[0]


def test_a_flipped_byte_is_noticed(checkpoints):
    data = newest(checkpoints).read_bytes()
    at = data.index(torch.full((64,), 10.0).numpy().tobytes())
    newest(checkpoints).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert checkpoints.load(lambda text: None)["step"] == 4


def test_a_file_of_a_killed_write_is_never_read(checkpoints):
    (checkpoints.folder / "step_12.tmp").write_bytes(newest(checkpoints).read_bytes())
    assert checkpoints.load()["step"] == 10


def test_nothing_saved_is_nothing_loaded(tmp_path):
    assert Checkpoints(tmp_path / "none").load() is None


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_executed(checkpoints, tmp_path):
    marker = tmp_path / "marker"
    with zipfile.ZipFile(newest(checkpoints), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(marker), protocol=2))
        archive.writestr("archive/version", "3")
    with pytest.raises(ValueError, match="step_10.pt"):
        checkpoints.load()
    assert not marker.exists()


class FullDisk(io.BytesIO):
    """Has room for some bytes, and no more."""

    def write(self, data):
        if self.tell() + len(data) > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_full_disk_is_an_error_of_the_system(size):
    """torch.save alone ends in a RuntimeError about its archive."""
    with pytest.raises(OSError) as raised:
        write_tensors({"w": torch.zeros(size)}, FullDisk())
    assert raised.value.errno == errno.ENOSPC


def test_what_cannot_be_pickled_is_another_error():
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        write_tensors({"w": lambda: None}, io.BytesIO())
