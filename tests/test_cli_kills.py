"""Trainings that are stopped, politely and not, and what a terminal shows of them."""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import time

import pytest
from cli_tool import (
    ENVIRONMENT,
    MINIGAN,
    SMALL,
    assert_same_training,
    here,
    installed,
    saved,
    start,
)

from minigan.checkpoint import all_in, load
from minigan.cli.train import _stop_signals

if os.name != "posix":
    pytest.skip("signals and terminals are POSIX's here", allow_module_level=True)

OFTEN = ["--set", "checkpoint_every=5", "--set", "sample_every=20", "--set", "keep_checkpoints=2"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def killed(command, run, moments):
    """Start a training and kill it: while it starts, or soon after its first few checkpoints."""
    process = start(*command, cwd=run.parent)

    def steps():
        return {p.name for p in (run / "checkpoints").glob("*.safetensors")}

    wait_for(lambda: (run / "config.json").exists() or process.poll() is not None)
    before = steps()
    if moments.random() < 0.8:
        new = moments.randint(1, 3)
        wait_for(lambda: len(steps() - before) >= min(new, 2) or process.poll() is not None)
        time.sleep(moments.uniform(0, 0.03))
    else:
        time.sleep(moments.uniform(0, 0.5))
    ended = process.poll()
    process.kill()
    output, _ = process.communicate()
    assert ended is None, f"it ended before the kill: {output}"


def kill_and_resume(cwd, recipe, steps, kills):
    """Train to `steps` with `kills` SIGKILLs on the way, and compare with a training at peace."""
    args = ["train", recipe, *SMALL, *OFTEN, "--steps", steps]
    moments = random.Random(steps)
    run, reached = cwd / "run", []
    command = [*args, "--out", "run"]
    for _ in range(kills):
        killed(command, run, moments)
        command = ["train", recipe, "--resume", "run"]
        if any((run / "checkpoints").glob("*.safetensors")):
            reached.append(saved(run).state["step"])
        for path in all_in(run / "checkpoints"):
            load(path)  # a kill leaves no half of one
    last = installed(*command, cwd=cwd)
    assert last.code == 0, last.err
    assert reached == sorted(reached) and 0 < reached[-1] < steps, reached
    assert here(*args, "--out", cwd / "peace").code == 0
    assert_same_training(run, cwd / "peace")


def test_three_kills(tmp_path):
    kill_and_resume(tmp_path, "mnist-gan", 250, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("recipe", "steps"), [("mnist-cgan", 800), ("mnist-dcgan", 800)])
def test_ten_kills(tmp_path, recipe, steps):
    kill_and_resume(tmp_path, recipe, steps, 10)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_finishes_the_step_saves_and_prints_how_to_go_on(tmp_path, number, code):
    args = ["train", "mnist-gan", *SMALL, "--steps", 250]
    process = start(*args, "--out", "a run", cwd=tmp_path)
    log = tmp_path / "a run" / "log.jsonl"
    wait_for(log.exists)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "finishing the step" in output and "Traceback" not in output
    step = saved(tmp_path / "a run").state["step"]
    assert 0 < step < 250 and f"stopped after step {step}" in output
    (command,) = re.findall(r"^  (minigan .*)", output, re.M)
    assert installed(*shlex.split(command)[1:], cwd=tmp_path).code == 0
    assert here(*args, "--out", tmp_path / "peace").code == 0
    a, b = saved(tmp_path / "a run"), saved(tmp_path / "peace")
    assert a.state["step"] == b.state["step"] == 250
    assert all(a.tensors[k].tobytes() == b.tensors[k].tobytes() for k in b.tensors)


def test_a_second_signal_interrupts_at_once():
    told = []
    before = signal.getsignal(signal.SIGINT)
    with _stop_signals(lambda: told.append(1)) as got:
        os.kill(os.getpid(), signal.SIGINT)
        assert (got, told) == ([signal.SIGINT], [1])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_at_once_is_one_line(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minigan.train.Trainer.warm_up", lambda *_: None)  # it takes steps, too
    monkeypatch.setattr("minigan.train.Trainer.advance", interrupted)
    done = here("train", "mnist-gan", *SMALL)
    assert done.code == 130
    assert done.err.startswith("minigan: stopped") and done.err.count("\n") == 1
    assert "--resume runs/0001-mnist-gan" in done.err
    monkeypatch.setattr("minigan.data.load", interrupted)
    done = here("train", "mnist-gan", *SMALL)
    assert (done.code, done.err) == (130, "minigan: stopped\n")


def on_terminal(args, cwd, **environment):
    """minigan ARGS on a pseudo-terminal: (exit code, all that it was sent)."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(
        [MINIGAN, *map(str, args)], cwd=cwd, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError):  # EIO when the last end of the other side is closed
        while chunk := os.read(ours, 4096):
            sent += chunk
    os.close(ours)
    return process.wait(timeout=60), sent.decode()


def test_a_terminal_shows_a_live_display(tmp_path):
    code, text = on_terminal(["train", "mnist-gan", *SMALL, "--steps", 300], tmp_path)
    assert code == 0
    assert "\x1b[" in text and "━" in text  # the bar is drawn over and over
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "300/300" in plain and "images/s" in plain
    for figure in ("loss D ", "D(x) ", "D(G(z)) ", "D right on real "):
        assert figure in plain
    assert "finished 300 steps" in plain
    assert text.rstrip().endswith("minigan sample runs/0001-mnist-gan")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again


def test_a_dumb_terminal_gets_lines(tmp_path):
    code, text = on_terminal(["train", "mnist-gan", *SMALL, "--steps", 2], tmp_path, TERM="dumb")
    assert code == 0 and "\x1b" not in text and "\n2/2  loss D" in text
