"""The table of ops on a device: pytest tests/test_devices.py --device cuda

Values, gradients and gradients of gradients in float32, against those of the CPU in float64.
"""

import contextlib
import dataclasses

import cases
import numpy as np
import pytest
from cases import CASES

import minigan as mg
from minigan import kernels
from minigan.array import DeviceError, check_device, to_device
from minigan.kernels.sim import nvrtc

WITH_KERNELS = {
    "batch_norm", "bias_act", "conv2d", "conv2d_dgrad", "conv2d_wgrad", "conv_transpose2d",
    "linear", "matmul",
}  # fmt: skip


def pytest_generate_tests(metafunc):
    """On sim, NumPy does what has no kernel. Of astype, the dtype is what it is about."""
    if "case" in metafunc.fixturenames:
        on_sim = metafunc.config.getoption("--device") == "sim"
        chosen = [c for c in CASES if c.op != "astype" and (not on_sim or c.op in WITH_KERNELS)]
        metafunc.parametrize("case", chosen, ids=str)


@pytest.fixture(scope="module")
def device(request):
    """The device of --device, ready; skips with the reason where there is none."""
    name = request.config.getoption("--device")
    try:
        check_device(name)
        if name == "sim":
            nvrtc.library()
    except (DeviceError, nvrtc.CompilerMissing) as missing:
        pytest.skip(str(missing))
    with contextlib.nullcontext() if name == "cuda" else kernels.use(name, checks=False):
        yield name


def moved(value, device):
    """Arrays inside an attribute, on the device."""
    if isinstance(value, tuple):
        return tuple(moved(v, device) for v in value)
    return to_device(value, device) if isinstance(value, np.ndarray) else value


def results(f, xs, move):
    """y, the gradients of <v, y>, and those of <d, gradients>, with v and d random."""
    rng = np.random.default_rng(1)

    def like(a):
        return move(np.asarray(rng.normal(size=a.shape)))

    leaves = [mg.Tensor(move(x), requires_grad=True) for x in xs]
    y = f(*leaves)
    v = like(y)
    plain = mg.grad(y, leaves, v)
    recorded = mg.grad(y, leaves, v, create_graph=True)
    slope = sum((gx * like(gx)).sum() for gx in recorded)
    second = mg.grad(slope, leaves) if slope.requires_grad else []
    return [t.numpy() for t in (y, *plain, *recorded, *second)]


def test_the_op_on_the_device(case, device, monkeypatch):
    xs = case.draw()
    with kernels.use("cpu"):
        expected = results(case.f, xs, lambda a: a)
    monkeypatch.setattr(cases, "MASK", to_device(cases.MASK, device))
    monkeypatch.setattr(cases, "LABELS", to_device(cases.LABELS, device))
    there = dataclasses.replace(case, attrs={k: moved(v, device) for k, v in case.attrs.items()})
    got = results(there.f, xs, lambda a: to_device(a.astype(np.float32), device))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1, np.abs(b).max(initial=0)))
