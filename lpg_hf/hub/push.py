"""A run's stages, or a dataset, to the Hub: one commit per repository, and nothing to repair after a failure."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from lpg_hf._cards import read_json
from lpg_hf.hub._client import HUB_ERRORS, commit_files, reason, repo_info, signed_in
from lpg_hf.hub._stages import check_stage, find_stages, prepare_stage


if TYPE_CHECKING:
    from lpg_hf.data.export import Export

# What a repository may hold before its first push: what the Hub's own page puts there.
INITIAL_FILES = {".gitattributes", "README.md", "LICENSE"}
KINDS = {"lpg": "an LPG stage", "segmenter": "a segmenter stage", "dataset": "a dataset in Parquet files"}
MAX_TITLE = 60  # characters that the Hub allows in the title of a collection


@dataclass(frozen=True)
class Pushed:
    """A repository after a push; `commit` is None in a dry run, `is_new` False if it held these files already."""

    repo_id: str
    commit: str | None
    is_new: bool
    files: dict[str, int]  # path in the repository -> bytes


@dataclass
class PushReport:
    """What a push did. `note` says why the collection is missing."""

    repos: list[Pushed] = field(default_factory=list)
    collection: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class PushOptions:
    """How a push treats the Hub.

    Args:
        private: make new repositories, and the collection, private.
        revision: branch to push to, made if needed; None: main.
        dry_run: send nothing, and report what would be sent.
    """

    private: bool = False
    revision: str | None = None
    dry_run: bool = False


def push_run(
    run_dir: str | Path,
    org: str,
    prefix: str = "lpg",
    push: PushOptions = PushOptions(),
    *,
    api: HfApi | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> PushReport:
    """Push every finished stage of a run: generators to ORG/PREFIX-stageN, segmenters to ORG/PREFIX-segmenter-stageN.

    A repository holds the weights, the image processor, the model's code (so that `trust_remote_code=True` works
    without this package), card, `metrics.json`, `training_config.yaml` and the run's image panel, all in one commit. A
    repository that holds the same files gets no commit, so the call may be repeated, also after a failure. All stages
    are checked and all files written before the first request.

    Args:
        run_dir: of training/em.py and training/deploy.py.
        org: organisation or user.
        api: client with another endpoint or token.
        log: receives a line for each repository that is done.

    Raises:
        FileNotFoundError: no run, no finished stage, or a stage that lacks a file.
        ValueError: a stage of the wrong kind or with damaged weights, a link out of the run folder, a panel
            that is no PNG, a name that the Hub does not allow, no token, or a repository that exists and holds
            something else, or is public with `private`.
        OSError: the Hub failed; the message says which repositories are complete and which are untouched.
    """
    stages = find_stages(Path(run_dir))
    for stage in stages:
        validate_repo_id(stage.repo_id(org, prefix))
        check_stage(stage)
    writer = None if push.dry_run else signed_in(api)
    report = PushReport()
    with tempfile.TemporaryDirectory() as folder:
        prepared = {}
        for stage in stages:
            work = Path(folder) / f"{stage.kind}{stage.number}"
            work.mkdir()
            prepared[stage.repo_id(org, prefix)] = (stage, prepare_stage(stage, stages, org, prefix, work))
        for repo_id, (stage, files) in prepared.items():
            if writer is None:
                report.repos.append(Pushed(repo_id, None, True, _sizes(files)))
                continue
            try:
                _make_repo(writer, repo_id, "model", push.private, kind=stage.kind)
                message = f"Stage {stage.number} of the {stage.kind}"
                commit, is_new = commit_files(writer, repo_id, "model", files, push.revision, message)
            except HUB_ERRORS as error:
                raise _stopped(repo_id, error, report, list(prepared)) from error
            report.repos.append(Pushed(repo_id, commit, is_new, _sizes(files)))
            log(f"{repo_id} {commit[:7]} {'pushed' if is_new else 'unchanged'}")
    if writer is not None:
        report.collection, report.note = _collect(writer, org, prefix, list(prepared), push.private)
    return report


def push_data(
    repo_id: str,
    export: "Export",
    push: PushOptions = PushOptions(),
    *,
    api: HfApi | None = None,
    **reading: Any,
) -> Pushed:
    """Push box and mask annotations as a dataset that `load_dataset(repo_id)` reads without this package.

    Args:
        repo_id: ORG/NAME of the dataset.
        export: what to push. Embed the image files (`with_images`) only if their licences allow it.
        api: client with another endpoint or token.
        **reading: options, num_proc and report of `lpg_hf.data.export.write_dataset`.

    Raises:
        ValueError, FileNotFoundError: the annotations cannot be read, there is no token, or the repository holds
            something else.
        OSError: the Hub failed; the repository is as it was.
    """
    from lpg_hf.data.export import write_dataset

    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not ORG/NAME, the id of a dataset on the Hub.")
    writer = None if push.dry_run else signed_in(api)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dataset"
        write_dataset(out, replace(export, repo_id=repo_id), **reading)
        files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        if writer is None:
            return Pushed(repo_id, None, True, _sizes(files))
        try:
            _make_repo(writer, repo_id, "dataset", push.private, kind="dataset")
            commit, is_new = commit_files(writer, repo_id, "dataset", files, push.revision, "Boxes and masks")
        except HUB_ERRORS as error:
            raise _stopped(repo_id, error, PushReport(), [repo_id]) from error
        return Pushed(repo_id, commit, is_new, _sizes(files))


def _sizes(files: dict[str, Path]) -> dict[str, int]:
    return {name: path.stat().st_size for name, path in sorted(files.items())}


def _make_repo(api: HfApi, repo_id: str, repo_type: str, private: bool, kind: str) -> None:
    """Make the repository, or accept one that is empty or holds an earlier push of the same kind."""
    try:
        info = repo_info(api, repo_id, repo_type)
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            raise
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
        info = repo_info(api, repo_id, repo_type)
    if private and not info.private:
        raise ValueError(
            "it exists and is public, but --private was given. Make it private in its settings, or choose another name"
        )
    names = {sibling.rfilename for sibling in info.siblings or []}
    if names <= INITIAL_FILES:
        return
    if repo_type == "dataset":
        is_ours = any(name.startswith("data/") and name.endswith(".parquet") for name in names)
    else:
        is_ours = "metrics.json" in names and _pushed_kind(api, repo_id, info.sha) == kind
    if not is_ours:
        raise ValueError(f"the name is taken: it exists and does not hold {KINDS[kind]}. Choose another name")


def _pushed_kind(api: HfApi, repo_id: str, commit: str | None) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repo_id, "metrics.json", revision=commit, local_dir=folder)
        except EntryNotFoundError:
            return None
        return read_json(Path(path)).get("kind")


def _stopped(repo_id: str, error: Exception, report: PushReport, repo_ids: list[str]) -> Exception:
    """The error that says what is where; a ValueError where the user's own values are the cause."""
    done = [pushed.repo_id for pushed in report.repos]
    waiting = [name for name in repo_ids if name not in done and name != repo_id]
    text = f"{repo_id} was not pushed: {reason(error, repo_id)}."
    if len(repo_ids) > 1:
        text += f" Complete: {', '.join(done) or 'none'}. Not begun: {', '.join(waiting) or 'none'}."
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ValueError(text)
    return OSError(
        f"{text} {repo_id} holds all of its old or all of its new files; once this is solved, the same command "
        "finishes the work."
    )


def _collect(api: HfApi, org: str, prefix: str, repo_ids: list[str], private: bool) -> tuple[str | None, str | None]:
    """Slug of the collection that groups the stages and None, or None and why there is no such collection."""
    try:
        collection = api.create_collection(
            f"{prefix}: stages"[:MAX_TITLE],
            namespace=org,
            description="Stage-wise generators and segmenters.",
            private=private,
            exists_ok=True,
        )
        known = {item.item_id for item in collection.items}
        for repo_id in repo_ids:
            if repo_id not in known:
                api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code in (404, 405, 501):
            return None, "no collection: this server offers none"
        return None, f"no complete collection: {reason(error, org)}; the same command tries again"
    except HUB_ERRORS as error:
        return None, f"no complete collection: {reason(error, org)}; the same command tries again"
    return collection.slug, None
