"""The launcher against the installed CuPy, without a card; and the kernels on a card."""

import inspect
import types

import numpy as np
import pytest

from minigan.kernels import cuda, launcher, signatures

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


class FakeDevice:
    """Stands for cupy.cuda.Device: a context manager with an id."""

    def __init__(self, id=0):
        self.id, self.entered = id, False

    def __enter__(self):
        self.entered = True

    def __exit__(self, *error):
        self.entered = False


def test_cupy_has_what_the_launcher_uses():
    assert issubclass(cupy.cuda.Device, object) and hasattr(cupy.cuda.Device, "__enter__")
    assert isinstance(inspect.getattr_static(cupy.ndarray, "device"), types.GetSetDescriptorType)
    module = cupy.RawModule(code="", options=("--std=c++17", "-DN=1"))  # compiles when called
    assert callable(module.get_function)
    assert all(hasattr(cupy, name) for name in ("ascontiguousarray", "asarray", "empty"))


def test_arguments_as_the_gpu_gets_them(monkeypatch):
    """Scalars have the declared type, None is a null pointer, and the arrays' device is current."""
    device, calls = FakeDevice(), []

    class FakeArray:
        pass

    x = FakeArray()
    x.device = device
    monkeypatch.setattr(launcher, "xp_of", lambda a: cupy if isinstance(a, FakeArray) else np)
    monkeypatch.setattr(
        launcher,
        "gpu_function",
        lambda xp, file, kernel: (
            lambda *call: calls.append((file, kernel.name, device.entered, *call))
        ),
    )
    signature = signatures.signatures()["bias_act"]
    kernel, args = cuda.Kernel("bias_act"), (x, None, x, np.uint32(7))
    launcher._execute_on_gpu(signature, kernel, (1, 1, 1), (256, 1, 1), args)
    ((file, name, entered, grid, block, passed),) = calls
    assert (file, name, entered) == ("channels.cu", "bias_act", True)
    assert (grid, block) == ((1, 1, 1), (256, 1, 1))
    assert [getattr(a, "dtype", None) for a in passed] == [None, np.uint64, None, np.uint32]
    assert passed[1] == 0


def test_two_devices_are_refused(monkeypatch):
    class FakeArray:
        def __init__(self, id):
            self.device = FakeDevice(id)

    monkeypatch.setattr(signatures, "xp_of", lambda a: cupy if isinstance(a, FakeArray) else np)
    with pytest.raises(ValueError, match=r"adam: .* p on GPU 0, g on GPU 1, m in host memory"):
        signatures.common_device(
            "adam", {"p": FakeArray(0), "g": FakeArray(1), "m": np.zeros(1, np.float32)}
        )


@pytest.mark.skipif(not cupy.cuda.is_available(), reason="CuPy sees no NVIDIA GPU or driver here")
def test_the_card_agrees_with_sim():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 20, 9, 7)).astype(np.float32)
    w = rng.standard_normal((70, 20, 3, 4)).astype(np.float32)
    rest = ((2, 1), ((1, 2), (0, 1)), (1, 1), 1)
    on_card = cuda.conv2d(cupy.asarray(x), cupy.asarray(w), *rest).get()
    np.testing.assert_allclose(on_card, cuda.conv2d(x, w, *rest), rtol=1e-6, atol=1e-6)
