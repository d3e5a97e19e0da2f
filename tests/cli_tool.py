"""Run the command line: `here` in this process, which is fast, and `installed` as a user does."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from minigan import checkpoint
from minigan.cli import main

MINIGAN = str(Path(sys.executable).with_name("minigan"))
# Two threads on any machine, so that kills and resumes meet shards and workers too.
ENVIRONMENT = {**os.environ, "MINIGAN_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
# A rate that decays over all steps would make a run of 3 steps, then 3 more, another than one of 6.
SMALL = ["--batch", "4", "--set", "latent_dim=3", "--set", "log_every=2", "--set", "decay=constant"]


@dataclass
class Done:
    code: int
    out: str
    err: str


def here(*args):
    """minigan ARGS in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in args])
        except SystemExit as end:
            return Done(end.code, out.getvalue(), err.getvalue())
    raise AssertionError("main() ends in SystemExit")


def installed(*args, cwd=None, **environment):
    """minigan ARGS through the console script."""
    done = subprocess.run(
        [MINIGAN, *map(str, args)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start(*args, cwd):
    """The same, going on in the background: a Popen."""
    return subprocess.Popen(
        [MINIGAN, *map(str, args)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def refused(done, *words, code=2):
    """One clear line on stderr, no traceback, and the exit code."""
    assert done.code == code, (done.out, done.err)
    error = done.err.removeprefix("compiling the kernels, once ...\n")  # who is the first to train
    assert error.startswith("minigan: ")
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for word in words:
        assert str(word) in error
    return True


def saved(run):
    """The newest checkpoint of a run folder."""
    return checkpoint.load(checkpoint.all_in(Path(run) / "checkpoints")[0])


def assert_same_training(run, other):
    """Weights and optimizers bit for bit, the samples, and the log but for its speeds."""
    a, b = saved(run), saved(other)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        assert a.tensors[name].tobytes() == b.tensors[name].tobytes(), name

    def log(folder):
        lines = Path(folder, "log.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]

    assert log(run) == log(other)
    pictures = sorted(p.name for p in (Path(run) / "samples").iterdir())
    assert pictures == sorted(p.name for p in (Path(other) / "samples").iterdir())
    last = pictures[-1]
    assert (Path(run, "samples", last)).read_bytes() == Path(other, "samples", last).read_bytes()
