"""What the public sees of the repository: the workflow, the templates, and links that lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[1]
# Data beside the repository, which nobody else has. In two parts, so that this file does not name it.
BESIDE = "../" + "shared"
# What was true when it was written.
HISTORY = {"CHANGELOG.md"}


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def workflow() -> dict:
    return yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def test_the_workflow_runs_every_python_that_is_declared():
    tested = [row["python"] for row in workflow()["jobs"]["tests"]["strategy"]["matrix"]["include"]]
    prefix = "Programming Language :: Python :: 3."
    declared = ["3." + text.removeprefix(prefix) for text in project()["classifiers"] if text.startswith(prefix)]
    assert tested == declared
    assert project()["requires-python"] == f">={tested[0]}"


def test_the_workflow_names_files_that_exist_and_actions_by_major_version():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for name in re.findall(r"-c (\S+\.txt)|(tests/\S+\.py)", text):
        assert (ROOT / "".join(name)).is_file(), name
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in re.findall(r"uses: (\S+)", text))


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("*.y*ml")) + [ROOT / ".pre-commit-config.yaml"], ids=lambda p: p.name
)
def test_yaml_of_the_repository_can_be_loaded(path: Path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()
        fields = [item["id"] for item in content["body"]]
        assert len(fields) == len(set(fields))


def test_pre_commit_uses_the_pinned_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert f"ruff=={hooks[0]['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_oldest_versions_are_the_declared_floors():
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = project()["optional-dependencies"]
    requirements = [text.split(">=") for text in [*project()["dependencies"], *extras["dev"], *extras["prepare"]]]
    # torch: see the file. Tools that check or build, and change nothing in a result, are not held back.
    free = {"torch", "ruff", "setuptools", "pyright", "vulture"}
    for requirement, floor in requirements:
        name = requirement.partition("[")[0]
        if name not in free:
            assert re.fullmatch(re.escape(floor) + r"(\.0)*", oldest[name]), name


def test_a_source_distribution_holds_everything_that_its_tests_need(tmp_path: Path):
    code = (
        "from setuptools import Distribution; d = Distribution({'script_name': 'setup.py'});"
        "d.parse_config_files(['pyproject.toml']);"
        f"c = d.get_command_obj('egg_info'); c.egg_base = {str(tmp_path)!r}; c.ensure_finalized(); c.run();"
        "print(*c.filelist.files, sep='\\0')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    packed = {Path(name).as_posix() for name in done.stdout.strip().split("\n")[-1].split("\0")}
    assert [name for name in tracked_files() if name not in packed and not name.startswith(".ci/")] == []


def test_no_file_names_data_beside_the_repository():
    naming = [
        name for name in tracked_files() if name not in HISTORY and BESIDE.encode() in (ROOT / name).read_bytes()
    ]
    assert not naming


def anchors(page: Path) -> set[str]:
    """The links to the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_to_committed_files():
    tracked = set(tracked_files())
    folders = {str(parent) for name in tracked for parent in Path(name).parents}
    broken = []
    for page in sorted(name for name in tracked if name.endswith(".md") and not name.startswith("hub_cards/")):
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = (ROOT / page).parent / target.partition("#")[0]
            relative = str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else None
            anchor = target.partition("#")[2]
            if relative not in tracked and relative not in folders:
                broken.append(f"{page}: {target}")
            elif anchor and relative.endswith(".md") and anchor not in anchors(ROOT / relative):
                broken.append(f"{page}: {target}")
    assert not broken


def test_the_first_page_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if line.startswith("|") and len(line) > 150] == []
    prose = re.sub(r"```.*?```|^[|#!].*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    sentences = [sentence for part in re.split(r"\n\s*\n", prose) for sentence in re.split(r"(?<=[.!?])\s+", part)]
    assert [sentence for sentence in sentences if len(sentence.split()) > 30] == []


def test_every_page_of_docs_is_two_links_from_the_first_page():
    reached = {ROOT / "README.md"}
    for _ in range(2):
        texts = [(page, page.read_text(encoding="utf-8")) for page in reached if page.suffix == ".md"]
        links = [(page, target) for page, text in texts for target in re.findall(r"\]\(([^)\s#]+)", text)]
        reached |= {path for page, target in links if (path := (page.parent / target).resolve()).is_file()}
    pages = {ROOT / "REPRODUCE.md", *(ROOT / "docs").glob("*.md")}
    wanted = "quickstart masks_from_boxes formats training hub_and_export glossary ARCHITECTURE CONTRIBUTING".split()
    assert {ROOT / "docs" / f"{name}.md" for name in wanted} <= pages
    assert not pages - reached
