import subprocess
from pathlib import Path


ROOT = Path(__file__).parents[1]
# What was measured, and what comes with the package, keeps the paths that it was made with.
HISTORY = (":!results/bench", ":!results/shallow", ":!results/mini_cpu", ":!lpg_hf/weights")


def test_no_file_names_a_folder_beside_the_checkout():
    """Photographs and weights lie where LPG_HF_DATA and LPG_HF_WEIGHTS say."""
    outside = "../" + "shared"
    found = subprocess.run(
        ["git", "grep", "--line-number", "--fixed-strings", outside, "--", ".", *HISTORY],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "" and found.returncode in (1, 128)  # 128: not a git checkout
