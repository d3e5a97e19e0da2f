"""README.md's snippets run as they stand; its commands exist and train, shortened."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.startswith("minigan ")
]


@pytest.mark.parametrize("snippet", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets(snippet, tmp_path):
    subprocess.run([sys.executable, "-W", "error", "-c", snippet], cwd=tmp_path, check=True)


def test_commands_run_in_order(tmp_path):
    """As a reader would type them; --steps made small, and no download."""
    assert len(COMMANDS) >= 6
    executable = Path(sys.executable).with_name("minigan")
    newest = 0
    for command in COMMANDS:
        words = [str(executable), *shlex.split(command)[1:]]
        if "fashion-mnist" in words:
            words[words.index("fashion-mnist")] = "mnist-10k"
        if words[1] == "train" and "--dry-run" not in words:
            newest += 2
            if "--steps" in words:
                words[words.index("--steps") + 1] = str(newest)
            else:
                words += ["--steps", str(newest)]
            if "--resume" in words:  # of the run that its recipe has
                first = [str(executable), "train", words[2], "--steps", "1", "--batch", "4"]
                subprocess.run(first, cwd=tmp_path, check=True, capture_output=True)
            else:
                words += ["--batch", "4"]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_set_up_commands_are_the_ones_that_ci_runs():
    lines = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv")]
    assert [line.rpartition("&& ")[2] for line in lines] == [
        ".venv/bin/minigan train mnist-dcgan", ".venv/bin/python -m pytest",
    ]  # fmt: skip
