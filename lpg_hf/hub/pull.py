"""Stages from the Hub: one at a time to the cache, or all of a run to a folder."""

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lpg_hf._cards import read_json
from lpg_hf._files import check_descriptors, place_output, unfinished_folder
from lpg_hf._weight_files import check_shards
from lpg_hf.hub._client import HTTP_ERROR, HUB_ERRORS, reason
from lpg_hf.hub._stages import stage_repo_id


# Copies of the weights for other frameworks, which repositories of other people's models hold too.
OTHER_WEIGHTS = ["*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.ot"]
# The Hub's client downloads 8 files at once, each with a connection, a lock and a file, and its cache tries out links
# in temporary folders. Where it finds none left, it prints tracebacks and waits.
DESCRIPTORS = 32


def fetch_stage(
    source: str | os.PathLike, revision: str | None = None, *, kind: str | None = None, api: HfApi | None = None
) -> Path:
    """Folder of a stage: `source` itself, or the cached snapshot of a Hub repository.

    All files of a snapshot belong to one commit, also while somebody pushes to the repository. Without a network, the
    cached snapshot is used.

    Args:
        source: folder, or on the Hub ORG/NAME or ORG/NAME@REVISION.
        revision: branch, tag or commit on the Hub.
        kind: "lpg" or "segmenter": what the stage must be.

    Raises:
        ValueError: the stage is of another kind, or `revision` is given with a folder.
        OSError: no such folder, repository or revision, or the Hub cannot be reached.
    """
    if revision is None and not Path(source).exists() and "@" in str(source):
        source, revision = str(source).split("@", 1)
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a folder, so it has no revision {revision!r}. Drop the revision.")
        folder = Path(source)
    elif str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source} is neither a folder nor an id like ORG/NAME on the Hub.")
    else:
        try:
            folder = _snapshot(api or HfApi(), str(source), revision)
        except HUB_ERRORS as error:
            raise OSError(
                f"{source} cannot be loaded from a folder or the Hub: {reason(error, str(source), revision)}."
            ) from error
    config = read_json(folder / "config.json")
    if not config:
        raise FileNotFoundError(f"{source} holds no config.json, so it is not a saved stage.")
    model_type = config.get("model_type")
    if kind is not None and (model_type == "lpg") != (kind == "lpg"):
        wanted = "an LPG stage" if kind == "lpg" else "a segmenter"
        raise ValueError(
            f"{source} holds a {model_type!r} model, not {wanted}. Give the folder or Hub id of {wanted}."
        )
    check_shards(folder)
    return folder


def pull_run(
    run_id: str,
    out: str | Path,
    revision: str | None = None,
    api: HfApi | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Bring all stages of a run, as `push_run` pushed them, to a run folder that `deploy.py --run.stages` takes.

    Args:
        run_id: ORG/PREFIX.
        out: run folder; OUT/aux/stageN/lpg and OUT/{aux,target}/stageN/segmenter appear one by one, each complete.
            Stages that it already holds are compared and kept.
        revision: branch, tag or commit of every repository.
        log: receives a line for each stage.

    Returns:
        The stage folders.

    Raises:
        ValueError: `run_id` is not ORG/PREFIX, a repository holds another kind of model, or `out` holds other stages.
        FileNotFoundError: there is no stage of this name.
        OSError: the Hub failed; the same call finishes the work.
    """
    if run_id.count("/") != 1 or not all(run_id.split("/")):
        raise ValueError(
            f"{run_id!r} is not ORG/PREFIX, such as org/lpg for the repositories org/lpg-stage1, org/lpg-stage2."
        )
    api, out, folders = api or HfApi(), Path(out), []
    expected: int | None = None
    for kind, number in (("lpg", 1), ("segmenter", 0)):
        while expected is None or number <= expected:
            repo_id = stage_repo_id(run_id, kind, number)
            try:
                snapshot = _snapshot(api, repo_id, revision)
            except HUB_ERRORS as error:
                if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                    if expected is not None and not (kind == "segmenter" and number == 0):
                        log(f"{repo_id} does not exist, but the run has {expected} stages: the push was incomplete")
                    break
                raise OSError(
                    f"{repo_id} was not pulled: {reason(error, repo_id, revision)}. Once this is solved, the same "
                    "command finishes the work."
                ) from error
            fetch_stage(snapshot, kind=kind)
            metrics = read_json(snapshot / "metrics.json")
            expected = _num_stages(metrics, expected)
            folder = out / _part(kind, metrics, repo_id) / f"stage{number}" / kind
            _copy_complete(snapshot, folder)
            log(f"{repo_id} {snapshot.name[:7]} -> {folder}")
            folders.append(folder)
            number += 1
    if not folders:
        raise FileNotFoundError(
            f"The Hub has neither {stage_repo_id(run_id, 'lpg', 1)} nor {stage_repo_id(run_id, 'segmenter', 0)}, or "
            "your token may not see them."
        )
    return folders


def _num_stages(metrics: dict, known: int | None) -> int | None:
    """The stages of the run as the push stated them, or the settings of a stage; else what is known."""
    settings = metrics.get("settings")
    run = settings.get("run") if isinstance(settings, dict) else None
    stated = metrics.get("num_stages", run.get("num_stages") if isinstance(run, dict) else None)
    return stated if type(stated) is int else known


def _part(kind: str, metrics: dict, repo_id: str) -> str:
    """The part of the run folder that a stage belongs to: a folder's name, so nothing but the two known ones."""
    part = "aux" if kind == "lpg" else metrics.get("part", "target")
    if part not in ("aux", "target"):
        raise ValueError(
            f"{repo_id}: metrics.json states the part {part!r}, but a segmenter belongs to 'aux' or 'target'. "
            "Ask its owner to push the run again."
        )
    return part


def _snapshot(api: HfApi, repo_id: str, revision: str | None) -> Path:
    check_descriptors(DESCRIPTORS)
    try:
        return Path(api.snapshot_download(repo_id, revision=revision, ignore_patterns=OTHER_WEIGHTS))
    except HTTP_ERROR as error:
        if isinstance(error, HfHubHTTPError):
            raise
        # The client looks into its cache where nothing answers, but not where a connection breaks.
        try:
            return Path(
                api.snapshot_download(repo_id, revision=revision, ignore_patterns=OTHER_WEIGHTS, local_files_only=True)
            )
        except LocalEntryNotFoundError:
            raise error from None


def _copy_complete(snapshot: Path, folder: Path) -> None:
    """Copy a snapshot to a folder, which appears complete or not at all."""
    names = sorted(path.name for path in snapshot.iterdir() if path.is_file() and path.name != ".gitattributes")
    if folder.exists():
        _, differing, missing = filecmp.cmpfiles(snapshot, folder, names, shallow=False)
        if differing or missing:
            raise ValueError(
                f"{folder} exists and is not this stage ({(differing + missing)[0]} differs). Choose another --out."
            )
        if not os.access(folder.parent, os.W_OK):
            return
    with unfinished_folder(folder) as unfinished:  # Also deletes what a killed process left beside a finished stage.
        if folder.exists():
            return
        written = unfinished / folder.name
        written.mkdir()
        for name in names:
            shutil.copyfile(snapshot / name, written / name)
        place_output(written, folder)
