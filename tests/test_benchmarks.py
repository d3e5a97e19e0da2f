"""The benchmarks' own arithmetic, which runs without PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


def test_peak_memory_is_not_that_of_the_parent():
    large = np.ones(40_000_000)  # 305 MiB
    code = "from common import peak_mib; import numpy; a = numpy.ones(5_000_000); print(peak_mib())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, timeout=120
    )
    assert 40 < float(done.stdout) < large.nbytes / 2**20


@pytest.mark.parametrize("script", ["step.py", "engine.py", "layers.py"])
@pytest.mark.parametrize("option", [["--rounds", "0"], ["--json", "nowhere/results.json"]])
def test_bad_options_are_refused_before_anything_is_measured(script, option):
    done = subprocess.run(
        [sys.executable, script, *option],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{script}: error: argument {option[0]}: ")


ASKED = """
import os, sys, time
from common import Failed, Worker, answer, take_turns

def make():
    if sys.argv[1] == "import":
        raise ImportError("no such library\\nat all")
    return reply

def reply(question):
    if sys.argv[1] == "die":
        os._exit(1)
    if sys.argv[1] == "sleep":
        time.sleep(60)
    return [1 / question]

if len(sys.argv) > 1:
    answer(make)
    raise SystemExit

def said(kind, question=0, limit=10):
    worker = Worker(__file__, [kind])
    try:
        return worker.ask(question, limit)
    except (Failed, TimeoutError) as reason:
        assert worker.process.returncode is not None
        return f"{type(reason).__name__} {reason}"

print(said("import"), said("die"), said("divide"), said("sleep", limit=1), said("divide", 2),
      sep="\\n")
print(take_turns({k: Worker(__file__, [k]) for k in ("die", "divide", "import")}, 4, 2))
"""


def test_a_contender_that_fails_is_told_and_left_out(tmp_path):
    (tmp_path / "asked.py").write_text(ASKED)
    done = subprocess.run(
        [sys.executable, tmp_path / "asked.py"],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "Failed ImportError: no such library",
        "Failed its process died",
        "Failed ZeroDivisionError: division by zero",
        "TimeoutError no answer within 1 s",
        "[0.5]",
        "{'divide': [0.25, 0.25]}",
    ], done.stderr
    assert "import does not work here: ImportError: no such library" in done.stderr


def test_scaling_times_one_thread_and_all(tmp_path):
    done = subprocess.run(
        [sys.executable, "step.py", "mnist-gan 64", "--scaling", "--rounds", "2", "--seconds",
         "0.02", "--json", str(tmp_path / "scaling.json")],
        cwd=BENCHMARKS, env={**os.environ, "MINIGAN_NUM_THREADS": "2"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = (r for r in json.loads((tmp_path / "scaling.json").read_text())["results"]
              if r["contender"] == "minigan")  # fmt: skip
    one, two = row["ms, 1 thread"], row["ms, 2 threads"]
    assert row["gain"] == f"{one / two:.2f}×"
