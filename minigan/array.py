"""Arrays and where they live: devices, transfers, and the random streams.

The only module that imports CuPy, and only when the device `cuda` is asked for; the kernels take
it from their arrays.
"""

from __future__ import annotations

import hashlib
import math
import sys
from functools import cached_property
from typing import Any

import numpy as np

Array = Any  # a numpy.ndarray, or a cupy.ndarray on the device `cuda`

DEVICES = ("cpu", "cuda", "sim")


class DeviceError(RuntimeError):
    """The device that was asked for is not there; the message says what to do."""


def xp_of(*arrays: Any) -> Any:
    """The module, numpy or cupy, that computes on `arrays`: cupy if any of them is CuPy's."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def check_device(device: str) -> str:
    """Return `device` if it can be used on this machine.

    Raises: DeviceError that says what is missing and how to get it.
    """
    if device not in DEVICES:
        raise DeviceError(f"unknown device {device!r}: choose one of {', '.join(DEVICES)}")
    if device == "cuda":
        try:
            import cupy
        except ImportError:
            raise DeviceError(
                "device cuda needs CuPy, which is not installed: pip install 'cupy-cuda12x[ctk]'"
            ) from None
        if not cupy.cuda.is_available():
            raise DeviceError(
                "device cuda: CuPy sees no NVIDIA GPU or driver here; use --device cpu"
            )
    return device


def to_device(a: Any, device: str) -> Array:
    """`a` as an array of `device`: CuPy's for cuda, NumPy's for cpu and sim. No copy if it is."""
    if device == "cuda":
        import cupy

        return cupy.asarray(a)
    return to_numpy(a)


def to_numpy(a: Any) -> np.ndarray:
    """`a` as a NumPy array in host memory. No copy if it is one."""
    return a.get() if hasattr(a, "get") and xp_of(a) is not np else np.asarray(a)


def address(a: Array) -> int:
    """Where the array's first element lies in the memory of its device."""
    return int(a.ctypes.data if xp_of(a) is np else a.data.ptr)


class Stream:
    """Random numbers that are a pure function of (seed, name, step).

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
    counter-based generator: key = (seed, 64-bit BLAKE2b of name), counter = (block, 0, 0, step),
    the first block having counter 1. Nothing is stored between steps, so a resumed training
    draws what the uninterrupted one would have drawn, and every device draws the same: the host
    generates, and a kernel that generates on its own must agree.

    seed: 0 .. 2^64 - 1.   step: 0 .. 2^64 - 1.   Successive calls on one Stream continue it.
    """

    def __init__(self, seed: int, name: str, step: int = 0) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in 0 .. 2^64 - 1, not {seed}")
        self._place = seed, name, step

    @cached_property
    def _bits(self) -> np.random.Philox:
        """The generator, made when a number is drawn: that takes longer than many a small op."""
        seed, name, step = self._place
        name_key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        return np.random.Philox(
            key=np.array([seed, name_key], np.uint64),
            counter=np.array([0, 0, 0, step], np.uint64),
        )

    def raw(self, n: int) -> np.ndarray:
        """n raw uint64, uniform over 0 .. 2^64 - 1."""
        return self._bits.random_raw(n)

    def _uint32(self, n: int) -> np.ndarray:
        """n uint32: each raw uint64 gives its low half, then its high half."""
        return self.raw((n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]

    def uniform(
        self, shape: int | tuple[int, ...], low: float = 0.0, high: float = 1.0
    ) -> np.ndarray:
        """float32, U[low, high): low + (high - low) · u,  u = (top 24 bits of a uint32) / 2^24.

        Where that rounds up to high, the float32 below it.
        """
        n = math.prod(shape) if isinstance(shape, tuple) else shape
        u = (self._uint32(n) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
        below = np.nextafter(np.float32(high), np.float32(low))
        return np.minimum(np.float32(low) + np.float32(high - low) * u, below).reshape(shape)

    def normal(
        self, shape: int | tuple[int, ...], mean: float = 0.0, std: float = 1.0
    ) -> np.ndarray:
        """float32, N(mean, std²), by Box-Muller on consecutive pairs of uint32 (a, b):

        r = sqrt(-2 ln u),  u = (a + 0.5) / 2^32,   t = 2π b / 2^32   ->   r cos t, r sin t
        """
        n = math.prod(shape) if isinstance(shape, tuple) else shape
        pairs = self._uint32(2 * ((n + 1) // 2)).astype(np.float64).reshape(-1, 2)
        r = np.sqrt(-2.0 * np.log((pairs[:, 0] + 0.5) * 2.0**-32))
        t = pairs[:, 1] * (2.0 * np.pi * 2.0**-32)
        z = np.stack([r * np.cos(t), r * np.sin(t)], axis=1).reshape(-1)[:n]
        return (mean + std * z).astype(np.float32).reshape(shape)

    def integers(self, n: int, high: int) -> np.ndarray:
        """n int64, uniform over 0 .. high - 1 (high ≤ 2^32): floor(uint32 · high / 2^32)."""
        return ((self._uint32(n).astype(np.uint64) * np.uint64(high)) >> np.uint64(32)).astype(
            np.int64
        )

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0 .. n - 1, int64: the order that sorts n raw uint64."""
        return np.argsort(self.raw(n), kind="stable")


class Generator:
    """The source of every random number that no caller keyed: initial weights, dropout masks.

    The n-th stream drawn after `manual_seed(seed, step)` is Stream(seed, "name/n", step): a
    training that calls manual_seed(seed, step) before each step is a pure function of both.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int, step: int = 0) -> None:
        """Start over from (seed, step)."""
        self.seed, self.step, self.drawn = seed, step, 0

    def stream(self, name: str) -> Stream:
        """The next Stream."""
        self.drawn += 1
        return Stream(self.seed, f"{name}/{self.drawn - 1}", self.step)


generator = Generator()
manual_seed = generator.manual_seed


def from_dlpack(x: Any) -> Array:
    """The array that shares x's memory, for any x with __dlpack__: NumPy's, or CuPy's on a GPU."""
    if x.__dlpack_device__()[0] == 2:  # kDLCUDA
        import cupy

        return cupy.from_dlpack(x)
    return np.from_dlpack(x)


def gpus() -> list[str]:
    """A line for each GPU that CuPy sees.   Raises: DeviceError as check_device("cuda")."""
    check_device("cuda")
    import cupy

    runtime = cupy.cuda.runtime
    driver = runtime.driverGetVersion()
    lines = []
    for i in range(runtime.getDeviceCount()):
        p = runtime.getDeviceProperties(i)
        lines.append(
            f"{p['name'].decode()}, compute capability {p['major']}.{p['minor']}, "
            f"{p['totalGlobalMem'] / 2**30:.0f} GiB, driver for CUDA {driver // 1000}."
            f"{driver % 1000 // 10}"
        )
    return lines
