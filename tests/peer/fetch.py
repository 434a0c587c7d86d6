"""Fetch the test mixins of the installed transformers version: `python tests/peer/fetch.py`.

They are in the source distribution and not in the wheel. They are unpacked as package `hf_tests` into
`.cache/peer/transformers-<version>/`, which git ignores, with stubs for the few modules the distribution leaves out.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


VERSION = version("transformers")
CACHE = Path(__file__).parents[2] / ".cache" / "peer" / f"transformers-{VERSION}"

# What the mixins import and the source distribution lacks. Our models neither generate text nor are exported.
STUBS = {
    "hf_tests/__init__.py": "",
    "hf_tests/exporters/__init__.py": "",
    "hf_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "hf_tests/generation/__init__.py": "",
    "hf_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "hf_tests/utils/__init__.py": "",
    "hf_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def download(folder: str) -> Path:
    """The source distribution, through pip; pip may run its build backend for the metadata."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers", "--dest", folder]
    requirement = f"transformers=={VERSION}"
    errors = []
    # Without isolation pip downloads nothing else if setuptools is installed; with isolation it needs none installed.
    for extra in (["--no-build-isolation"], []):
        result = subprocess.run([*command, *extra, requirement], capture_output=True, text=True, check=False)
        archives = sorted(Path(folder).glob("transformers-*.tar.gz"))
        if archives:
            return archives[0]
        errors.append(result.stderr)
    raise SystemExit(f"pip could not download the source distribution of {requirement}:\n" + "\n".join(errors))


def unpack(archive: Path) -> None:
    """`tests/*.py` of the archive, then the stubs."""
    with tarfile.open(archive) as tar:
        files = {Path(member.name): tar.extractfile(member).read() for member in tar if member.isfile()}
    # <root>/tests/<name>.py
    tests = {
        path.name: text for path, text in files.items() if path.parts[1:-1] == ("tests",) and path.suffix == ".py"
    }
    if "test_modeling_common.py" not in tests:
        raise SystemExit(f"{archive.name} holds no tests/test_modeling_common.py; this version ships no test mixins.")
    for name, text in [
        *((f"hf_tests/{n}", t) for n, t in tests.items()),
        *((n, t.encode()) for n, t in STUBS.items()),
    ]:
        path = CACHE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def main() -> None:
    if not (CACHE / "hf_tests" / "test_modeling_common.py").exists():
        with tempfile.TemporaryDirectory() as folder:
            unpack(download(folder))
    print(f"test mixins of transformers {VERSION} are in {CACHE}")


if __name__ == "__main__":
    main()
