"""Unmodified clients, each a process with a cache of its own, against a Hub that `lpg-hf push-run` has filled."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_runs import write_real_run
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image

from lpg_hf.cli import main


ROOT = Path(__file__).parents[2]

# A network on a fixed input, and its outputs as a file: what both sides of a comparison run.
COMPUTE = """
import torch
torch.set_num_threads(1)

def outputs(lpg, segmenter):
    torch.manual_seed(1)
    pixels, mask, prob = torch.rand(1, 3, 48, 64), torch.zeros(1, 1, 48, 64), torch.rand(1, 1, 48, 64)
    mask[:, :, 8:40, 8:40] = 1
    with torch.no_grad():
        return {
            "lpg": lpg(pixel_values=pixels, box_mask=mask, class_prob=prob).logits,
            "segmenter": segmenter(pixel_values=pixels).logits,
        }
"""
WITH_PACKAGE = """
import sys
from pathlib import Path
from transformers import AutoModelForSemanticSegmentation
from lpg_hf import LPGModel, load_generator
from lpg_hf.hub import fetch_stage
from lpg_hf.training.models import load_lpg

lpg = LPGModel.from_pretrained("org/lpg-stage2", revision=sys.argv[2])
segmenter = AutoModelForSemanticSegmentation.from_pretrained("org/lpg-segmenter-stage1", revision=sys.argv[2])
torch.save(outputs(lpg, segmenter), sys.argv[1])
lpg, processor = load_lpg("org/lpg-stage2", sys.argv[2])
assert torch.equal(outputs(lpg, segmenter)["lpg"], torch.load(sys.argv[1])["lpg"])
load_generator("lpg", model="org/lpg-stage2", segmenter="org/lpg-segmenter-stage1", revision=sys.argv[2])
assert type(processor).__name__ == "LPGImageProcessor"
assert "snapshots" in str(fetch_stage("org/lpg-stage2", sys.argv[2]))
"""
CARDS = """
import re, sys
for name in ("org/lpg-stage1", "org/lpg-stage2", "org/lpg-segmenter-stage1"):
    card = open(hf_hub_download(name, "README.md"), encoding="utf-8").read()
    scope = {}
    for snippet in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
        if "trust_remote_code" not in snippet:
            exec(snippet, scope)
    if "segmenter" not in name:
        assert scope["mask"].shape == (160, 150) and scope["foreground"].shape == (1, 160, 150), name
    else:
        assert scope["label_map"].shape == (160, 150)
"""
WITHOUT_PACKAGE = """
import re, sys
sys.modules["lpg_hf"] = sys.modules["training"] = None  # importing them fails, as where they are not installed
from datasets import load_dataset
from huggingface_hub import hf_hub_download
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

lpg = AutoModel.from_pretrained("org/lpg-stage2", trust_remote_code=True)
segmenter = AutoModelForSemanticSegmentation.from_pretrained("org/lpg-segmenter-stage1", trust_remote_code=True)
torch.save(outputs(lpg, segmenter), sys.argv[1])
processor = AutoImageProcessor.from_pretrained("org/lpg-stage2", trust_remote_code=True)
image = torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()
inputs = processor(image, boxes=[[8, 8, 40, 40]], return_tensors="pt")
assert inputs["pixel_values"].shape[:2] == (1, 3) and len(inputs["views"][0]) == 1
assert type(lpg).__module__.startswith("transformers_modules"), type(lpg).__module__

for name in ("org/lpg-stage2", "org/lpg-segmenter-stage1", "org/boxes"):
    kind = "dataset" if name == "org/boxes" else "model"
    card = open(hf_hub_download(name, "README.md", repo_type=kind), encoding="utf-8").read()
    for snippet in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
        if kind == "dataset" or "trust_remote_code" in snippet:
            exec(snippet)  # of the dataset it sets `first`
assert first["file_name"] == "a.png" and first["objects"]["bbox"] == [[10, 8, 20, 16]] and "image" not in first
assert first["license"] == "CC0 http://example.org/cc0", first["license"]
rows = load_dataset("org/boxes")["train"]
assert rows.features["objects"]["category"].feature.names == ["thing"] and len(rows) == 1
assert load_dataset("org/boxes", revision="with-images", split="train")[0]["image"].size == (60, 40)
"""


def process(hub: HubServer, home: Path, code: str, *arguments: object, cwd: Path, **environment: str) -> str:
    """Standard output of a Python process whose Hub is `hub`; fails with its error text."""
    return run_client(hub, home, ["-c", code, *map(str, arguments)], cwd, **environment)


def run_client(hub: HubServer, home: Path, arguments: list[str], cwd: Path, code: int = 0, **environment: str) -> str:
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
    values = os.environ | hub.environment(home) | ours | environment
    result = subprocess.run(
        [sys.executable, *arguments], env=values, capture_output=True, text=True, cwd=cwd, timeout=120
    )
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def lpg_hf(hub: HubServer, home: Path, *arguments: object, code: int = 0, **environment: str) -> str:
    """What the command prints; its error text if it must fail."""
    return run_client(hub, home, ["-m", "lpg_hf.cli", *map(str, arguments)], home, code, **environment)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    Image.new("RGB", (60, 40), "blue").save(root / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40, "license": 3}],
        "licenses": [{"id": 3, "name": "CC0", "url": "http://example.org/cc0"}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 8, 20, 16], "area": 320, "iscrowd": 0}
        ],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub(source: Path, annotations: Path, home: Path):
    """A Hub that two commands have filled, one by each kind of repository."""
    with HubServer() as server:
        printed = lpg_hf(server, home, "push-run", source, "--org", "org")
        assert [line.split()[0] for line in printed.splitlines()[:-1]] == [
            f"org/lpg-{name}"
            for name in ("stage1", "stage2", "segmenter-stage0", "segmenter-stage1", "segmenter-stage2")
        ]
        assert printed.splitlines()[-1] == "collection org/lpg-stages-0123"
        data = ["--format", "coco", "--annotations", annotations / "boxes.json", "--images", annotations]
        assert "pushed: README.md" in lpg_hf(server, home, "push-data", "org/boxes", *data)
        lpg_hf(server, home, "push-data", "org/boxes", *data, "--embed-images", "--revision", "with-images")
        HfApi(endpoint=server.endpoint, token=TOKEN).create_tag("org/lpg-stage2", tag="v1")
        HfApi(endpoint=server.endpoint, token=TOKEN).create_tag("org/lpg-segmenter-stage1", tag="v1")
        yield server


@pytest.fixture(scope="module")
def wanted(source: Path) -> dict:
    from lpg_hf import DeepLabV2ForSemanticSegmentation, LPGModel

    scope: dict = {}
    exec(COMPUTE, scope)
    lpg = LPGModel.from_pretrained(source / "aux/stage2/lpg")
    segmenter = DeepLabV2ForSemanticSegmentation.from_pretrained(source / "target/stage1/segmenter")
    return scope["outputs"](lpg, segmenter)


def assert_equal(found: Path, wanted: dict) -> None:
    outputs = torch.load(found)
    assert outputs.keys() == wanted.keys()
    assert all(torch.equal(outputs[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_stages_load_by_their_ids_and_cards_run_as_written_also_offline(hub: HubServer, wanted: dict, tmp_path: Path):
    Image.new("RGB", (150, 160), "red").save(tmp_path / "image.jpg")
    home, out = tmp_path / "home", tmp_path / "out.pt"
    download = "from huggingface_hub import hf_hub_download\n"
    with hub.fail("truncated", "GET .*safetensors", times=2), hub.fail("slow", "GET .*config.json", times=2):
        process(hub, home, COMPUTE + WITH_PACKAGE + download + CARDS, out, "v1", cwd=tmp_path)
    assert_equal(out, wanted)

    out.unlink()
    sent = len(hub.requests)
    process(hub, home, COMPUTE + WITH_PACKAGE, out, "v1", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert_equal(out, wanted)
    assert len(hub.requests) == sent


def test_models_and_data_load_where_the_package_is_not_installed(hub: HubServer, wanted: dict, tmp_path: Path):
    home, out = tmp_path / "home", tmp_path / "out.pt"
    process(hub, home, COMPUTE + WITHOUT_PACKAGE, out, cwd=tmp_path, PYTHONPATH="")
    assert_equal(out, wanted)


def test_pull_from_a_clean_cache(hub: HubServer, source: Path, tmp_path: Path):
    printed = lpg_hf(hub, tmp_path, "pull-run", "org/lpg", "--out", tmp_path / "out")
    assert len(printed.splitlines()) == 5
    for path in source.rglob("model.safetensors"):
        assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_a_second_push_changes_nothing(hub: HubServer, source: Path, tmp_path: Path):
    before = hub.content()
    commits = {key: len(repo.commits) for key, repo in hub.repos.items()}
    assert lpg_hf(hub, tmp_path, "push-run", source, "--org", "org").count("unchanged") == 5
    assert hub.content() == before and commits == {key: len(repo.commits) for key, repo in hub.repos.items()}


@pytest.mark.parametrize(
    "arguments, token, message",
    [
        (["push-run", "RUN", "--org", "org"], None, "There is no token for the Hub"),
        (["push-run", "RUN", "--org", "org"], "hf_old", "the token is wrong or has expired"),
        (["push-run", "none", "--org", "org"], TOKEN, "Run folder none does not exist"),
        (["pull-run", "org/none", "--out", "out"], TOKEN, "The Hub has neither org/none-stage1"),
        (["push-data", "org/x", "--format", "coco", "--annotations", "none.json"], TOKEN, "none.json"),
    ],
)
def test_errors_of_the_command_are_one_line(
    hub: HubServer,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
    arguments: list,
    token: str | None,
    message: str,
):
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr("lpg_hf.hub._client.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
    monkeypatch.setattr(sys, "argv", ["lpg-hf", *(str(source) if a == "RUN" else a for a in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capfd.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert printed[-1].startswith("lpg-hf: ") and message in printed[-1]
    assert not any("Traceback" in line for line in printed)


@pytest.mark.parametrize(
    "name", ["org/lpg-stage1", "org/lpg-stage2", "org/lpg-segmenter-stage0", "org/lpg-segmenter-stage2"]
)
def test_cards_are_complete_and_their_numbers_are_in_metrics_json(hub: HubServer, name: str):
    files = hub.files(name)
    card, metrics = ModelCard(files["README.md"].decode()), json.loads(files["metrics.json"])
    data, run, stage = card.data, metrics["run"], str(metrics["stage"])
    assert data.library_name == "lpg_hf" and data.license == "apache-2.0" and data.metrics == ["mean_iou"]
    found = {(r.metric_name, r.dataset_name): r.metric_value for r in data.eval_results}
    if metrics["kind"] == "lpg":
        assert data.pipeline_tag == "mask-generation" and data.datasets == ["coco-nonvoc60"]
        assert found == {
            ("pseudo_mask_miou", "the auxiliary images"): metrics["pseudo_mask_miou"],
            ("target_pseudo_mask_miou", "voc train"): run["pseudo_mask_miou"][stage],
        }
        assert "The target's classes (cup, bowl) are none of these" in card.text
        assert "Excluded classes (2)" in card.text and "`cup` comes out worst: IoU 0.5" in card.text
        assert ("needs a segmenter" in card.text) == (stage == "2")
    else:
        assert data.pipeline_tag == "image-segmentation" and data.datasets == ["voc-train"]
        assert found == {
            ("segmenter_miou", "4 evaluation images"): metrics["segmenter_miou"],
            ("segmenter_crf_miou", "voc train"): run["segmenter_crf_miou"][stage],
        }
        assert "Its worst class is `bowl`: IoU 0.2" in card.text
    previous = {"org/lpg-stage2": "org/lpg-stage1", "org/lpg-segmenter-stage2": "org/lpg-segmenter-stage1"}
    assert data.base_model == previous.get(name)
    assert (
        "| segmenter + dense CRF | 0.43 | 0.53 | 0.63 |" in card.text and "| filled boxes | 0.35 |  |  |" in card.text
    )
    assert "| device | cpu |" in card.text and "panel.png" in card.text and "arXiv:2103.05463" in card.text

    numbers = "".join(files[file].decode() for file in ("metrics.json", "config.json", "preprocessor_config.json"))
    sections = card.text.split("## Data")[1].split("## Licence")[0]
    for number in re.findall(r"\d+\.\d+|\d{2,}", sections):
        assert number in numbers, f"{number} is in no file"


def test_the_card_of_a_data_set_keeps_licences(hub: HubServer):
    card = ModelCard(hub.files("org/boxes", kind="dataset")["README.md"].decode())
    assert card.data.license == "other" and card.data.configs[0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert "- CC0 http://example.org/cc0" in card.text and "images are not part of this dataset" in card.text
    assert 'load_dataset("org/boxes", split="train", streaming=True)' in card.text
    with_images = hub.files("org/boxes", "with-images", kind="dataset")
    assert b"not part of this dataset" not in with_images["README.md"]


@pytest.mark.slow
def test_deploy_takes_stages_from_the_hub(tmp_path: Path):
    """A tiny EM run, its stages on the Hub, and a deployment that has nothing but their prefix and revision."""
    sys.path.insert(0, str(ROOT / "tests" / "training"))
    from tiny_run import TINY, launch

    from lpg_hf.data.synthetic import _write_synthetic_dataset

    _write_synthetic_dataset(tmp_path / "data", num_aux=8, num_target=6, num_eval=4, size=(64, 64), seed=0)
    values = TINY | {
        "run.num_stages": 1,
        "aux.annotations": str(tmp_path / "data/aux/annotations.json"),
        "aux.images": str(tmp_path / "data/aux/images"),
        "target.root": str(tmp_path / "data/target"),
    }
    result = launch("em.py", values, tmp_path / "em")
    assert result.returncode == 0, result.stderr
    with HubServer() as hub:
        lpg_hf(hub, tmp_path, "push-run", tmp_path / "em", "--org", "org", "--revision", "v1")
        environment = hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        wrapper = f"import os\nos.environ.update({environment!r})"
        local = launch("deploy.py", values, tmp_path / "local", "--run.stages", str(tmp_path / "em"))
        remote = launch("deploy.py", values, tmp_path / "remote", "--run.stages", "org/lpg@v1", wrapper=wrapper)
        assert local.returncode == 0, local.stderr
        assert remote.returncode == 0, remote.stderr
        masks = {p.name: p.read_bytes() for p in (tmp_path / "remote/target/stage1/pseudo_masks").rglob("*.png")}
        assert masks
        assert masks == {
            p.name: p.read_bytes() for p in (tmp_path / "local/target/stage1/pseudo_masks").rglob("*.png")
        }
        unknown = launch("deploy.py", values, tmp_path / "none", "--run.stages", "org/lpg@v9", wrapper=wrapper)
        assert unknown.returncode != 0
        assert "org/lpg-stage1 has no such revision 'v9'" in unknown.stderr.strip().splitlines()[-1]
