"""The benchmarks' own arithmetic, which runs without PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("case", "multiplications"),
    [
        # G forward twice (no grad, then recorded), D forward on x, G(z), G(z); weight gradients of
        # D on x and G(z), of G; input gradients of D's last layer on both, of all D, of G's last.
        ("mnist-gan 64", 64 * (2 * 113_152 + 3 * 100_480 + 2 * 100_480 + 2 * 128
                               + 113_152 + 100_480 + 100_352)),
    ],
)  # fmt: skip
def test_multiplications_of_a_step(case, multiplications):
    code = f"from step import multiplications, CASES; print(multiplications(CASES[{case!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == multiplications


@pytest.mark.parametrize("case", ["mnist-dcgan 64", "wgan-gp mnist-dcgan 64"])
def test_steps_with_convolutions_are_counted(case):
    code = f"from step import multiplications, CASES; print(multiplications(CASES[{case!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 64 * 10_000_000
