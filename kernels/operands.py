"""What the functions that launch kernels share: arrays checked and made, kernels specialised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigan.array import Array, xp_of
from minigan.kernels.launcher import Kernel, is_planning

Dims = tuple[int, ...]

ACTIVATIONS = {  # act(x), and act'(x) from y = act(x); see reference.ACTIVATIONS
    "linear": ("(x)", "1.0f"),
    "relu": ("((x) < 0.0f ? 0.0f : (x))", "((y) > 0.0f ? 1.0f : 0.0f)"),
    "leaky_relu": ("((x) > 0.0f ? (x) : (x) * {slope})", "((y) > 0.0f ? 1.0f : {slope})"),
    "tanh": ("tanhf(x)", "(1.0f - (y) * (y))"),
    "sigmoid": ("(1.0f / (1.0f + expf(-(x))))", "((y) * (1.0f - (y)))"),
}


def activation(act: str, slope: float) -> dict[str, str]:
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, not {act!r}")
    forward, gradient = ACTIVATIONS[act]
    literal = f"{float(slope)!r}f"
    return {
        "ACT(x)": forward.replace("{slope}", literal),
        "ACT_GRAD(y)": gradient.replace("{slope}", literal),
    }


def specialised(name: str, **defines: Any) -> Kernel:
    return Kernel(name, tuple(defines.items()))


def float32(op: str, **arrays: Array) -> list[Array]:
    """The arrays, C-contiguous (copied if they are not), an array without axes as it is."""
    for name, a in arrays.items():
        if a.dtype != np.float32:
            raise TypeError(
                f"{op}: {name} is {a.dtype}, but the CUDA kernels compute in float32 alone; "
                f"convert it with astype('float32'), or use device cpu"
            )
        if a.size >= 2**31:
            raise ValueError(f"{op}: {name} has {a.size} elements, more than 32-bit indices reach")
    return [a if a.flags.c_contiguous else xp_of(a).ascontiguousarray(a) for a in arrays.values()]


def empty(like: Array, shape: Dims) -> Array:
    """An unwritten float32 array beside `like`, for a result; while planning, of zeros."""
    xp = xp_of(like)
    return (xp.zeros if is_planning() else xp.empty)(shape, np.float32)


def workspace(like: Array, shape: Dims) -> Array:
    """The same for what one kernel leaves to the next: sim finds a read before the write."""
    if xp_of(like) is not np:
        return empty(like, shape)
    from minigan.kernels import sim

    return sim.empty(shape)


def expect(op: str, name: str, a: Array, shape: Dims) -> None:
    if a.shape != shape:
        raise ValueError(f"{op}: {name} has shape {a.shape}, but {shape} is expected")


def blocks(n: int, each: int = 256) -> Dims:
    return (math.ceil(n / each),)
