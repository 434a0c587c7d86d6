"""Push and pull against a local Hub, also while it fails. Models that compute are in test_hub_clients.py."""

import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_runs import folders, write_small_run
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, ModelCard, close_session, constants
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from lpg_hf.data.export import Export
from lpg_hf.hub import PushOptions, fetch_stage, pull_run, push_data, push_run
from lpg_hf.hub._client import HTTP_ERROR, reason


# huggingface_hub's own way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOS = ["org/lpg-stage1", "org/lpg-segmenter-stage0", "org/lpg-segmenter-stage1"]


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs") / "a", num_stages=1)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs") / "b", value=100.0, num_stages=1)


@pytest.fixture(autouse=True)
def quick_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Waits of the client are cut short; it has a cache of its own and plain LFS."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.005)))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def client(hub: HubServer, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def expected(run: Path) -> dict:
    """Content of all repositories after a push that nothing disturbs."""
    with HubServer() as hub:
        push_run(run, "org", api=client(hub))
        return hub.content()


# Push and push again


def test_a_run_becomes_one_commit_in_each_repository(hub: HubServer, run: Path):
    report = push_run(run, "org", api=client(hub))
    assert [pushed.repo_id for pushed in report.repos] == REPOS and all(pushed.is_new for pushed in report.repos)
    for pushed in report.repos:
        repo = hub.repos["model", pushed.repo_id]
        assert len(repo.commits) == 2 and repo.branches["main"] == pushed.commit  # the first is the server's own
        files = hub.files(pushed.repo_id)
        assert set(files) == set(pushed.files)
        assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= set(files)
        assert {"metrics.json", "training_config.yaml", "panel.png"} <= set(files)
    assert hub.files(REPOS[0])["model.safetensors"] == (run / "aux/stage1/lpg/model.safetensors").read_bytes()
    assert b"lpg:\n  steps: 5" in hub.files(REPOS[0])["training_config.yaml"]
    assert [item["id"] for item in hub.collections[report.collection]["items"]] == REPOS


def test_pushing_the_same_again_makes_no_commit(hub: HubServer, run: Path):
    first = push_run(run, "org", api=client(hub))
    again = push_run(run, "org", api=client(hub))
    assert [p.commit for p in again.repos] == [p.commit for p in first.repos]
    assert not any(pushed.is_new for pushed in again.repos)
    assert all(len(repo.commits) == 2 for repo in hub.repos.values()) and len(hub.collections) == 1


def test_a_changed_stage_makes_one_commit_and_leaves_the_others(hub: HubServer, run: Path, tmp_path: Path):
    push_run(run, "org", api=client(hub))
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    path = changed / "target/stage1/segmenter/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 5}))
    report = push_run(changed, "org", api=client(hub))
    assert [pushed.is_new for pushed in report.repos] == [False, False, True]
    assert json.loads(hub.files(REPOS[2])["config.json"])["value"] == 5


def test_weights_of_an_earlier_push_leave_with_the_commit_that_replaces_them(hub: HubServer, run: Path):
    api = client(hub)
    push_run(run, "org", api=api)
    shard = "model-00001-of-00002.safetensors"
    api.upload_file(path_or_fileobj=b"old", path_in_repo=shard, repo_id=REPOS[0])
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=REPOS[0])
    push_run(run, "org", api=api)
    files = hub.files(REPOS[0])
    assert shard not in files and files["notes.txt"] == b"mine"


def test_dry_run_sends_nothing_and_needs_no_token(hub: HubServer, run: Path):
    report = push_run(run, "org", push=PushOptions(dry_run=True), api=HfApi(endpoint=hub.endpoint, token=False))
    assert [pushed.repo_id for pushed in report.repos] == REPOS and not hub.requests
    assert report.repos[0].files["model.safetensors"] == (run / "aux/stage1/lpg/model.safetensors").stat().st_size


def test_private_repositories(hub: HubServer, run: Path):
    push_run(run, "org", push=PushOptions(private=True), api=client(hub))
    assert all(repo.private for repo in hub.repos.values()) and next(iter(hub.collections.values()))["private"]
    with pytest.raises(FileNotFoundError, match="your token may not see them"):
        pull_run("org/lpg", run / "never", api=client(hub, token=False))


def test_private_refuses_a_public_repository_before_sending_anything(hub: HubServer, run: Path):
    push_run(run, "org", api=client(hub))
    before = hub.content()
    with pytest.raises(ValueError, match=r"org/lpg-stage1 .* is public, but --private was given"):
        push_run(run, "org", push=PushOptions(private=True), api=client(hub))
    assert hub.content() == before


def test_a_server_without_collections(run: Path):
    with HubServer(collections=False) as hub:
        report = push_run(run, "org", api=client(hub))
        assert report.collection is None and report.note == "no collection: this server offers none"
        assert len(report.repos) == 3


def test_segmenters_of_the_auxiliary_set_are_pushed_where_there_is_no_target(
    hub: HubServer, run: Path, tmp_path: Path
):
    alone = tmp_path / "run"
    shutil.copytree(run / "aux", alone / "aux")
    shutil.copytree(run / "target/stage0/segmenter", alone / "aux/stage0/segmenter")
    push_run(alone, "org", api=client(hub))
    metrics = json.loads(hub.files("org/lpg-segmenter-stage0")["metrics.json"])
    assert metrics["part"] == "aux" and "panel.png" not in hub.files("org/lpg-stage1")
    pull_run("org/lpg", tmp_path / "out", api=client(hub))
    assert (tmp_path / "out/aux/stage0/segmenter/model.safetensors").is_file()


def test_a_run_without_segmenters_names_none(hub: HubServer, tmp_path: Path):
    shutil.copytree(write_small_run(tmp_path / "run") / "aux", tmp_path / "alone/aux")
    push_run(tmp_path / "alone", "org", api=client(hub))
    files = hub.files("org/lpg-stage2")
    assert "segmenter" not in json.loads(files["metrics.json"]) and b"segmenter-stage" not in files["README.md"]
    assert json.loads(files["metrics.json"])["base_model"] == "org/lpg-stage1"


# Pull, revisions, the cache


def test_pull_brings_every_stage_and_keeps_complete_ones(hub: HubServer, run: Path, tmp_path: Path):
    push_run(run, "org", api=client(hub))
    out = tmp_path / "out"
    found = pull_run("org/lpg", out, api=client(hub))
    assert found == [folder for _, _, folder in folders(out, 1)]
    for _, _, folder in folders(run, 1):
        copy = out / folder.relative_to(run)
        assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert ModelCard.load(copy / "README.md").data.library_name == "lpg_hf"
    assert pull_run("org/lpg", out, api=client(hub)) == found
    again = push_run(out, "org", api=client(hub))
    assert not any(pushed.is_new for pushed in again.repos)
    (out / "aux/stage1/lpg/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"aux/stage1/lpg exists and is not this stage \(config.json differs\)"):
        pull_run("org/lpg", out, api=client(hub))


def test_revisions(hub: HubServer, run: Path, other_run: Path, tmp_path: Path):
    api = client(hub)
    push_run(run, "org", api=api)
    report = push_run(other_run, "org", push=PushOptions(revision="v2"), api=api)
    assert hub.files(REPOS[0]) != hub.files(REPOS[0], "v2")
    push_run(other_run, "org", push=PushOptions(revision="v2"), api=api)
    assert len(hub.repos["model", REPOS[0]].commits) == 3

    weights = {"v2": other_run, report.repos[0].commit: other_run, "main": run, None: run}
    for i, (revision, source) in enumerate(weights.items()):
        folder = fetch_stage(REPOS[0], revision, kind="lpg", api=api)
        assert revision is None or fetch_stage(f"{REPOS[0]}@{revision}", api=api) == folder
        stage = "aux/stage1/lpg/model.safetensors"
        assert (folder / "model.safetensors").read_bytes() == (source / stage).read_bytes(), revision
        if revision != report.repos[0].commit:  # a commit belongs to one repository
            pull_run("org/lpg", tmp_path / str(i), revision, api=api)
            assert (tmp_path / str(i) / stage).read_bytes() == (source / stage).read_bytes()
    with pytest.raises(OSError, match="org/lpg-stage1 has no such revision 'v9'"):
        fetch_stage(REPOS[0], "v9", api=api)
    with pytest.raises(OSError, match="no such revision 'v9'"):
        pull_run("org/lpg", tmp_path / "none", "v9", api=api)
    assert not (tmp_path / "none").exists()


def test_the_cache_serves_without_a_network(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    api = client(hub)
    push_run(run, "org", api=api)
    folder = fetch_stage(REPOS[0], api=api)
    for kind in ("reset", "500"):
        with hub.fail(kind, times=1000):
            assert fetch_stage(REPOS[0], api=api) == folder, kind
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sent = len(hub.requests)
    assert fetch_stage(REPOS[0], api=api) == folder and len(hub.requests) == sent
    with pytest.raises(OSError, match="segmenter-stage0 is not in the cache, and the Hub is switched off"):
        fetch_stage("org/lpg-segmenter-stage0", api=api)


def test_weights_of_other_frameworks_stay_on_the_hub(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    api = client(hub)
    push_run(run, "org", api=api)
    for name in ("tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "rust_model.ot", "model.tflite"):
        api.upload_file(path_or_fileobj=b"large", path_in_repo=name, repo_id=REPOS[0])
    folder = fetch_stage(REPOS[0], api=api)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names - {".gitattributes"} == set(hub.files(REPOS[0])) - {
        "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "rust_model.ot", "model.tflite"
    }  # fmt: skip


@pytest.mark.parametrize("part", ["../../x", "/tmp", "aux/..", "", None, 3, ["target"]])
def test_no_value_of_a_pulled_file_is_a_path(hub: HubServer, run: Path, tmp_path: Path, part: object):
    push_run(run, "org", api=client(hub))
    metrics = json.loads(hub.files(REPOS[1])["metrics.json"]) | {"part": part, "settings": {"run": ["x"]}}
    client(hub).upload_file(
        path_or_fileobj=json.dumps(metrics).encode(), path_in_repo="metrics.json", repo_id=REPOS[1]
    )
    with pytest.raises(ValueError, match="segmenter-stage0: metrics.json states the part .* 'aux' or 'target'"):
        pull_run("org/lpg", tmp_path / "deep" / "out", api=client(hub))
    assert {path.name for path in tmp_path.iterdir()} <= {"deep", "cache"}
    assert not list((tmp_path / "deep").rglob("segmenter"))


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 3, None])
def test_a_weight_index_names_only_files_beside_it(run: Path, tmp_path: Path, shard: object):
    folder = tmp_path / "stage"
    shutil.copytree(run / "aux/stage1/lpg", folder)
    assert fetch_stage(folder) == folder
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match="is not the name of a file beside it"):
        fetch_stage(folder)
    for text in ("[]", '{"weight_map": []}', "[" * 100_000):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match="model.safetensors.index.json"):
            fetch_stage(folder)


def test_an_unfinished_push_is_pulled_as_far_as_it_goes_and_said_to_be_unfinished(hub: HubServer, tmp_path: Path):
    push_run(write_small_run(tmp_path / "run"), "org", api=client(hub))
    del hub.repos["model", "org/lpg-segmenter-stage2"]
    lines = []
    assert len(pull_run("org/lpg", tmp_path / "out", api=client(hub), log=lines.append)) == 4
    assert "org/lpg-segmenter-stage2 does not exist, but the run has 2 stages" in lines[-1]


def test_stages_that_a_run_got_later_are_pulled_too(hub: HubServer, tmp_path: Path):
    run = write_small_run(tmp_path / "run")
    for _, _, folder in folders(run, 1):  # as they were written before run.num_stages was raised
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["settings"]["run"]["num_stages"] = 1
        (folder / "metrics.json").write_text(json.dumps(metrics))
    push_run(run, "org", api=client(hub))
    found = pull_run("org/lpg", tmp_path / "out", api=client(hub))
    assert found == [folder for _, _, folder in folders(tmp_path / "out", 2)]


@pytest.mark.parametrize("kind", ["truncated", "slow", "reset", "429", "503"])
def test_downloads_survive_faults_or_leave_nothing(hub: HubServer, run: Path, tmp_path: Path, kind: str):
    push_run(run, "org", api=client(hub))
    undisturbed = pull_run("org/lpg", tmp_path / "undisturbed", api=client(hub))
    for skip in range(0, 12, 2):
        shutil.rmtree(constants.HF_HUB_CACHE)
        out = tmp_path / f"out{skip}"
        with hub.fail(kind, "GET .*(resolve|api/models)", skip=skip, times=3):
            try:
                pull_run("org/lpg", out, api=client(hub))
            except OSError as error:
                assert "\n" not in str(error)
        for folder in out.rglob("*.tmp"):
            raise AssertionError(f"{folder} is half of a stage")
        complete = pull_run("org/lpg", out, api=client(hub))
        for one, two in zip(complete, undisturbed, strict=True):
            assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


# Faults while pushing


def assert_whole(hub: HubServer, *allowed: dict) -> None:
    """Every repository is empty or holds exactly what one of the pushes brings."""
    for key, files in hub.content().items():
        assert not files or any(files == content[key] for content in allowed), key


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_any_broken_connection_is_repaired_by_the_same_command(run: Path, step: int):
    wanted = expected(run)
    with HubServer() as hub:
        push_run(run, "org", api=client(hub))
        num_requests = len(hub.requests)
    kinds = [(kind, times) for kind in ("reset", "lost") for times in (1, 1000)]  # one request, or all from there on
    failed = 0
    for i, (kind, times) in enumerate(kinds):
        for skip in range(i % step, num_requests, step):
            with HubServer() as hub:
                with hub.fail(kind, skip=skip, times=times):
                    try:
                        push_run(run, "org", api=client(hub))
                    except OSError as error:
                        failed += 1
                        assert "holds all of its old or all of its new files" in str(error)
                        assert "\n" not in str(error)
                assert_whole(hub, wanted)
                report = push_run(run, "org", api=client(hub))
                assert hub.content() == wanted and report.collection, (kind, times, skip)
                assert all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert failed > num_requests // step


FAULTS = [
    ("500", "segmenter-stage0/commit", "the server answered 500"),
    ("503", "segmenter-stage0/preupload", "the server answered 503"),
    ("429", "segmenter-stage0/commit", "the server answered 429"),
    ("507", "PUT /lfs", "507 .*; the server has no space left"),
    ("401", "segmenter-stage0", "401 .* run `hf auth login` again"),
    ("401", "segmenter-stage0/commit", "401 .* run `hf auth login` again"),
    ("403", "segmenter-stage0/preupload", "access to org/lpg-segmenter-stage0 is restricted"),
    ("truncated", "segmenter-stage0/commit", "the connection failed"),
]


@pytest.mark.parametrize("kind, pattern, message", FAULTS)
def test_faults_say_what_is_where_and_the_same_command_finishes(
    hub: HubServer, run: Path, other_run: Path, kind: str, pattern: str, message: str
):
    old, new = expected(run), expected(other_run)
    push_run(run, "org", api=client(hub))
    skip = 1 if pattern.startswith("PUT") else 0  # the first stage's weights
    with hub.fail(kind, pattern, skip=skip, times=1000), pytest.raises(OSError, match=message) as error:
        push_run(other_run, "org", api=client(hub))
    text = str(error.value)
    assert "\n" not in text and text.startswith("org/lpg-segmenter-stage0 was not pushed: ")
    assert "Complete: org/lpg-stage1. Not begun: org/lpg-segmenter-stage1." in text
    assert_whole(hub, old, new)
    assert hub.content()["model", "org/lpg-stage1"] == new["model", "org/lpg-stage1"]
    push_run(other_run, "org", api=client(hub))
    assert hub.content() == new


HTTP = sys.modules[HTTP_ERROR.__module__]
ERRORS_OF_THE_CLIENT = [
    PermissionError("Token refresh failed"),  # Xet raises these without a number
    RuntimeError("Network error: Request error: HTTP status client error (404 Not Found)"),
    OSError(errno.ENOSPC, "Error writing: [errno 28]", "blob"),
    json.JSONDecodeError("Expecting value", "<html>", 0),
    HTTP.ConnectError("refused"),
    *(
        HfHubHTTPError("bad", response=HTTP.Response(status, request=HTTP.Request("GET", "http://hub")))
        for status in (400, 402, 403, 404, 409, 412, 413, 418, 429, 500, 502, 504, 507)
    ),
]


@pytest.mark.parametrize("error", ERRORS_OF_THE_CLIENT, ids=str)
def test_every_error_of_the_hub_is_one_line_with_a_remedy(error: Exception):
    text = reason(error, "org/name")
    assert re.search("check|try again|wait|Free|look at|may not|has no space|too large for", text), text
    assert "\n" not in text and "errno" not in text.lower()


@pytest.mark.parametrize("kind", ["429", "503"])
def test_a_busy_server_is_asked_again(hub: HubServer, run: Path, kind: str):
    with hub.fail(kind, "preupload|batch|PUT", times=3):
        push_run(run, "org", api=client(hub))
    assert hub.content() == expected(run)


def test_a_failing_collection_leaves_complete_stages_and_a_note(hub: HubServer, run: Path):
    with hub.fail("500", "collections", times=1000):
        report = push_run(run, "org", api=client(hub))
    assert report.collection is None and "no complete collection: the server answered 500" in report.note
    assert hub.content() == expected(run)
    assert push_run(run, "org", api=client(hub)).collection


def test_a_reader_sees_the_old_or_the_new_commit(hub: HubServer, run: Path, other_run: Path, tmp_path: Path):
    allowed = [expected(run)["model", REPOS[0]], expected(other_run)["model", REPOS[0]]]
    api, seen, stop = client(hub), [], threading.Event()
    push_run(run, "org", api=api)

    def read() -> None:
        while not stop.is_set():
            folder = fetch_stage(REPOS[0], api=api)
            seen.append({p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".gitattributes"})

    reader = threading.Thread(target=read)
    reader.start()
    for source in [other_run, run] * 3:
        push_run(source, "org", api=api)
    stop.set()
    reader.join()
    assert len(seen) > 3 and all(files in allowed for files in seen)


@pytest.mark.parametrize("same", [True, False])
def test_two_pushes_at_once(hub: HubServer, run: Path, other_run: Path, same: bool):
    sources, failures = [run, run if same else other_run], []
    allowed = [expected(source) for source in sources]
    start = threading.Barrier(2)

    def push(source: Path) -> None:
        start.wait()
        try:
            push_run(source, "org", api=client(hub))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(hub.content()) == set(allowed[0])
    assert_whole(hub, *allowed)
    if same:
        assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_a_commit_in_between_is_not_overwritten_unseen(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    """A shard that appears between our look at the repository and our commit does not survive the new weights."""
    api = client(hub)
    push_run(run, "org", api=api)
    shard, commit, calls = "model-00001-of-00002.safetensors", HfApi.create_commit, []

    def late(self: HfApi, repo_id: str, *args: object, **kwargs: object):
        if not calls and repo_id == REPOS[0]:
            calls.append(repo_id)
            self.upload_file(path_or_fileobj=b"late", path_in_repo=shard, repo_id=repo_id)
        return commit(self, repo_id, *args, **kwargs)

    path = run / "aux/stage1/lpg/config.json"
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {"value": 7}))
    monkeypatch.setattr(HfApi, "create_commit", late)
    try:
        push_run(run, "org", api=api)
    finally:
        path.write_text(content)
    assert calls and shard not in hub.files(REPOS[0])
    assert json.loads(hub.files(REPOS[0])["config.json"])["value"] == 7


# Datasets


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """One image with one box, as fields of `Export`."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 8, 20, 16], "area": 320, "iscrowd": 0}
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return {"annotations": [str(tmp_path / "boxes.json")], "images": str(tmp_path)}


def test_data_are_pushed_in_one_commit_and_not_twice(hub: HubServer, boxes: dict):
    pushed = push_data("org/boxes", Export("coco", **boxes), api=client(hub))
    assert pushed.is_new and set(pushed.files) == {"README.md", "data/train-00000-of-00001.parquet"}
    repo = hub.repos["dataset", "org/boxes"]
    assert len(repo.commits) == 2 and set(hub.files("org/boxes", kind="dataset")) == set(pushed.files)
    again = push_data("org/boxes", Export("coco", **boxes), api=client(hub))
    assert not again.is_new and again.commit == pushed.commit and len(repo.commits) == 2


def test_images_are_pushed_only_when_asked_for(hub: HubServer, boxes: dict):
    files = []
    for with_images in (False, True):
        push_data("org/boxes", Export("coco", with_images=with_images, **boxes), api=client(hub))
        files.append(hub.files("org/boxes", kind="dataset"))
    assert [b"PNG" in part["data/train-00000-of-00001.parquet"] for part in files] == [False, True]


def test_data_bad_input_and_faults(hub: HubServer, boxes: dict):
    api = client(hub)
    dry = push_data("org/boxes", Export("coco", **boxes), PushOptions(dry_run=True), api=api)
    assert dry.commit is None and not hub.requests
    with pytest.raises(ValueError, match="'boxes' is not ORG/NAME"):
        push_data("boxes", Export("coco", **boxes), api=api)
    with pytest.raises(ValueError, match="--format must be one of coco, voc, yolo"):
        push_data("org/boxes", Export("csv", **boxes), api=api)
    assert not hub.repos
    with (
        hub.fail("507", "PUT", times=1000),
        pytest.raises(OSError, match="org/boxes was not pushed: .* no space left"),
    ):
        push_data("org/boxes", Export("coco", **boxes), api=api)
    assert hub.files("org/boxes", kind="dataset") == {}
    assert push_data("org/boxes", Export("coco", **boxes), api=api).is_new
    api.create_repo("org/other", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.csv", repo_id="org/other", repo_type="dataset")
    with pytest.raises(ValueError, match="org/other was not pushed: the name is taken"):
        push_data("org/other", Export("coco", **boxes), api=api)


# Bad input


def test_no_token(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lpg_hf.hub._client.get_token", lambda: None)
    with pytest.raises(ValueError, match="There is no token for the Hub. Run `hf auth login`"):
        push_run(run, "org", api=HfApi(endpoint=hub.endpoint))
    assert not hub.requests


def test_no_push_while_the_hub_is_switched_off(hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()  # the client decides when it is made
    try:
        with pytest.raises(OSError, match=r"org/lpg-stage1 was not pushed: the Hub is switched off \(HF_HUB_OFFLINE"):
            push_run(run, "org", api=client(hub))
    finally:
        close_session()
    assert not hub.requests


def test_a_wrong_token_is_said_to_be_wrong(hub: HubServer, run: Path, tmp_path: Path):
    with pytest.raises(OSError, match="401 .* the token is wrong or has expired"):
        push_run(run, "org", api=client(hub, token="hf_old"))
    push_run(run, "org", api=client(hub))
    with pytest.raises(OSError, match="401 .* the token is wrong or has expired"):
        pull_run("org/lpg", tmp_path / "out", api=client(hub, token="hf_old"))


def test_no_network(run: Path, tmp_path: Path):
    api = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)  # nothing listens there
    with pytest.raises(OSError, match=r"org/lpg-stage1 was not pushed: the connection failed \(ConnectError"):
        push_run(run, "org", api=api)
    with pytest.raises(OSError, match="org/lpg-stage1 was not pulled: the connection failed"):
        pull_run("org/lpg", tmp_path / "out", api=api)
    assert not (tmp_path / "out").exists()


def test_unknown_repositories(hub: HubServer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="neither org/none-stage1 nor org/none-segmenter-stage0"):
        pull_run("org/none", tmp_path / "out", api=client(hub))
    with pytest.raises(ValueError, match="'lpg' is not ORG/PREFIX"):
        pull_run("lpg", tmp_path / "out", api=client(hub))
    with pytest.raises(OSError, match="org/none cannot be loaded .* org/none does not exist, or is private"):
        fetch_stage("org/none", api=client(hub))
    for source in ("./none", "none", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is neither a folder nor an id like ORG/NAME"):
            fetch_stage(source, api=client(hub))


def test_gated_repositories(hub: HubServer, run: Path, tmp_path: Path):
    push_run(run, "org", api=client(hub))
    hub.gated.add("org/lpg-stage1")
    with pytest.raises(OSError, match="access to org/lpg-stage1 is restricted; ask for access on its page"):
        pull_run("org/lpg", tmp_path / "out", api=client(hub))
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_taken_by_another_model(hub: HubServer, run: Path):
    api = client(hub)
    api.create_repo("org/lpg-segmenter-stage0")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/lpg-segmenter-stage0")
    with pytest.raises(
        ValueError, match="segmenter-stage0 was not pushed: the name is taken: .* does not hold a segmenter stage"
    ):
        push_run(run, "org", api=api)
    assert hub.files("org/lpg-segmenter-stage0") == {"config.json": b"{}"}
    push_run(run, "org", prefix="other", api=api)
    with pytest.raises(
        ValueError, match="other-segmenter-stage1 was not pushed: the name is taken: .* does not hold an LPG stage"
    ):
        push_run(run, "org", prefix="other-segmenter", api=api)  # a stage, but of the other kind


def test_a_name_that_cannot_be_made(hub: HubServer, run: Path):
    with hub.fail("409", "repos/create", times=1000), pytest.raises(OSError, match="does not exist, or is private"):
        push_run(run, "org", api=client(hub))
    assert not hub.repos
    with pytest.raises(ValueError, match="or--g"):
        push_run(run, "or--g", api=client(hub))


@pytest.mark.parametrize("revision", [None, "v1"])
def test_other_kinds_of_model_are_refused(hub: HubServer, run: Path, revision: str | None):
    push_run(run, "org", push=PushOptions(revision=revision), api=client(hub))
    with pytest.raises(ValueError, match="stage0 holds a 'deeplab_v2' model, not an LPG stage"):
        fetch_stage("org/lpg-segmenter-stage0", revision, kind="lpg", api=client(hub))
    with pytest.raises(ValueError, match="holds a 'lpg' model, not a segmenter"):
        fetch_stage(REPOS[0], revision, kind="segmenter", api=client(hub))
    folder = run / "aux/stage1/lpg"
    with pytest.raises(ValueError, match="is a folder, so it has no revision 'v1'"):
        fetch_stage(folder, "v1")
    assert fetch_stage(folder, kind="lpg") == folder


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda stage: (stage / "metrics.json").unlink(), FileNotFoundError, "lpg holds no metrics.json"),
        (
            lambda stage: (stage / "preprocessor_config.json").unlink(),
            FileNotFoundError,
            "no preprocessor_config.json",
        ),
        (lambda stage: (stage / "model.safetensors").unlink(), FileNotFoundError, r"lpg holds no \*.safetensors"),
        (
            lambda stage: (stage / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
            ),
            FileNotFoundError,
            "holds no model-00002-of-00002.safetensors",
        ),
        (lambda stage: (stage / "config.json").write_text("{"), ValueError, "config.json is not valid JSON"),
        (
            lambda stage: (stage / "config.json").write_text('{"model_type": "bert"}'),
            ValueError,
            "config.json has model_type 'bert', but this stage must be an LPG",
        ),
        (
            lambda stage: (stage / "metrics.json").write_text('{"kind": "segmenter"}'),
            ValueError,
            "metrics.json has kind 'segmenter', but this stage is 'lpg'",
        ),
        (
            lambda stage: (stage / "model.safetensors").write_bytes((stage / "model.safetensors").read_bytes()[:-4]),
            ValueError,
            "model.safetensors is damaged",
        ),
    ],
)
def test_stages_that_cannot_be_pushed_are_refused_before_the_first_request(
    hub: HubServer, run: Path, tmp_path: Path, spoil, error: type, message: str
):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    spoil(broken / "aux/stage1/lpg")
    with pytest.raises(error, match=message) as raised:
        push_run(broken, "org", api=client(hub))
    assert "\n" not in str(raised.value) and not hub.requests


@pytest.mark.parametrize(
    "name",
    [
        "target/panel.png",
        "target/metrics.json",
        *("aux/stage1", "aux/stage1/lpg"),
        *(f"aux/stage1/lpg/{name}" for name in ("model.safetensors", "config.json", "preprocessor_config.json")),
        *(f"aux/stage1/lpg/{name}" for name in ("metrics.json", "model.safetensors.index.json")),
    ],
)
def test_a_link_out_of_the_run_is_refused_before_the_first_request(
    hub: HubServer, run: Path, tmp_path: Path, name: str
):
    broken, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(run, broken)
    place = broken / name
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text(json.dumps({"weight_map": {"weight": "model.safetensors"}}))
    place.symlink_to(outside)
    with pytest.raises(
        ValueError, match=f"{name}.* leads out of .*run through a link, to .*outside.* remove it"
    ) as raised:
        push_run(broken, "org", api=client(hub))
    assert "\n" not in str(raised.value) and not hub.requests


def test_links_of_the_caches_snapshots_to_their_blobs_are_pushed(hub: HubServer, run: Path, tmp_path: Path):
    repo = tmp_path / "models--org--run"
    snapshot = repo / "snapshots" / "0123"
    shutil.copytree(run, snapshot)
    (repo / "blobs").mkdir()
    for number, path in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        path.rename(repo / "blobs" / str(number))
        path.symlink_to(repo / "blobs" / str(number))
    push_run(snapshot, "org", api=client(hub))
    assert hub.content() == expected(run)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda run: (run / "target/panel.png").write_text("secret"), "panel.png is not a PNG image"),
        (lambda run: os.mkfifo(run / "aux/stage1/lpg/z.safetensors"), "z.safetensors is not a regular file"),
        (lambda run: (run / "target/stage0/segmenter/d.safetensors").mkdir(), "d.safetensors is not a regular file"),
        (
            lambda run: shutil.copytree(run / "aux/stage1", run / "aux/stage01"),
            "aux/stage01/lpg and .*aux/stage1/lpg are both of stage 1. Remove one",
        ),
    ],
)
def test_what_is_no_file_of_the_run_is_refused_before_the_first_request(
    hub: HubServer, run: Path, tmp_path: Path, spoil, message: str
):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    spoil(broken)
    with pytest.raises(ValueError, match=message) as raised:
        push_run(broken, "org", api=client(hub))
    assert "\n" not in str(raised.value) and not hub.requests


def test_a_folder_whose_number_is_no_plain_digit_is_no_stage(hub: HubServer, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "aux/stage1", tmp_path / "run/aux/stage\N{SUPERSCRIPT TWO}")
    push_run(tmp_path / "run", "org", api=client(hub))
    assert hub.content() == expected(run)


def test_folders_that_are_no_run(hub: HubServer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        push_run(tmp_path / "none", "org", api=client(hub))
    with pytest.raises(FileNotFoundError, match="holds no finished stage"):
        push_run(tmp_path, "org", api=client(hub))
