"""Training on device sim, as a user runs it."""

import json

import pytest
from cli_tool import here, installed, refused

from minigan.kernels.sim import nvrtc


@pytest.fixture(autouse=True)
def compiler():
    try:
        nvrtc.library()
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))


def log(run):
    (line,) = (run / "log.jsonl").read_text().splitlines()
    return {k: v for k, v in json.loads(line).items() if k != "images_per_second"}


def test_sim_gives_the_losses_of_the_cpu(tmp_path):
    args = ["train", "mnist-dcgan", "--steps", "2", "--batch", "4"]
    for device in ("cpu", "sim"):
        done = installed(*args, "--device", device, "--out", tmp_path / device)
        assert done.code == 0, done.err
    expected, got = log(tmp_path / "cpu"), log(tmp_path / "sim")
    assert {"d_loss", "g_loss", "d_real"} < expected.keys() == got.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_graph_needs_a_gpu_and_every_update(tmp_path):
    out = tmp_path / "run"
    done = here("train", "mnist-gan", "--cuda-graph", "--out", out)
    assert refused(done, "CUDA graph", "needs device cuda, not cpu")
    done = here("train", "mnist-gan", "--cuda-graph", "--on-nan", "skip", "--out", out)
    assert refused(done, "--cuda-graph", "--on-nan stop") and not out.exists()
