"""Imports flow one way (docs/ARCHITECTURE.md): no module imports from a floor above its own, and none in a circle."""

import ast
import re
from pathlib import Path


ROOT = Path(__file__).parents[1]
# From the ground up; what no entry names is a ground module of `lpg_hf`.
FLOORS = (
    ("lpg_hf.metrics", "lpg_hf.models"),
    ("lpg_hf.data",),
    ("lpg_hf.hub",),
    ("lpg_hf.generators",),
    ("lpg_hf.masks",),
    ("lpg_hf.evaluation",),
    ("lpg_hf.convert_official", "lpg_hf.export_onnx", "lpg_hf.demo", "lpg_hf.training"),
    ("lpg_hf.cli",),
    ("training",),
    ("benchmarks",),
)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module; a package has the name of its folder."""
    files = [path for folder in ("lpg_hf", "training", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that one imports, also inside functions; the lazy table of `lpg_hf` is not an import."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {full if full in known else base for full in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {other for other in found if other in known and other != name}


def floor(name: str) -> int:
    matches = [i for i, names in enumerate(FLOORS, 1) if any(name == n or name.startswith(f"{n}.") for n in names)]
    return matches[0] if matches else 0


def test_imports_never_run_upwards():
    known = modules()
    upward = [
        f"{name} -> {other}"
        for name, path in known.items()
        for other in imports(name, path, known)
        if floor(other) > floor(name)
    ]
    assert not upward


def test_imports_make_no_circle():
    known = modules()
    waiting = {name: imports(name, path, known) for name, path in known.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


def test_models_stand_alone():
    """A checkpoint carries the files of `models/` as remote code, so they import siblings and third parties only."""
    known = modules()
    inside = {name: path for name, path in known.items() if name.startswith("lpg_hf.models.")}
    outside = {name: imports(name, path, known) - inside.keys() for name, path in inside.items()}
    assert not {name: others for name, others in outside.items() if others}


def test_architecture_page_lists_every_module_once():
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    routes, listed = page.split("## Modules")
    listed = re.findall(r"^- `([^`]+\.py)`: ", listed, re.MULTILINE)
    files = {path.relative_to(ROOT).as_posix() for path in modules().values() if path.name != "__init__.py"}
    assert sorted(listed) == sorted(files)
    assert set(re.findall(r"^\d+\. `([^`]+)`", routes, re.MULTILINE)) <= files


def test_public_names_are_at_most_260():
    """Functions and classes of `lpg_hf` without an underscore in their own or in any containing name, as in PEP 8."""
    public = [
        f"{name}.{node.name}"
        for name, path in modules().items()
        if name.startswith("lpg_hf") and "._" not in name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(public) <= 260, f"{len(public)} public names; what only lpg_hf itself uses belongs in a private module"
