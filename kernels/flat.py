"""The small kernels, as in reference.py: losses, flat buffers, sums, random numbers.

One launch each, and what counts is their number: see README.md, "Launches".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigan.array import Array
from minigan.kernels.launcher import launch, numbers
from minigan.kernels.operands import blocks, empty, expect, float32, specialised
from minigan.kernels.reference import Pair


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    (x,) = float32("bce_with_logits", x=x)
    loss, gx = empty(x, ()), empty(x, x.shape)
    launch(specialised("bce_with_logits"), (1,), (256,), (x, loss, gx, x.size, target))
    return loss, gx


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    real, fake = float32("logistic_d", real=real, fake=fake)
    loss, gx = empty(real, ()), empty(real, (real.size + fake.size,))
    args = (real, fake, loss, gx, real.size, fake.size, target)
    launch(specialised("logistic_d"), (1,), (256,), args)
    return loss, gx


def logit_figures(real: Array, fake: Array) -> Array:
    real, fake = float32("logit_figures", real=real, fake=fake)
    figures = empty(real, (6,))
    args = (real, fake, figures, real.size, fake.size)
    launch(specialised("logit_figures"), (1,), (256,), args)
    return figures


def pack(arrays: Sequence[Array], starts: Sequence[int], flat: Array) -> None:
    (_,) = float32("pack", flat=flat)
    for first in range(0, len(arrays), 8):
        named = {f"arrays[{first + i}]": a for i, a in enumerate(arrays[first : first + 8])}
        some, empty = float32("pack", **named), [0] * (8 - len(named))
        layout = {
            "SIZES": ",".join(map(str, [a.size for a in some] + empty)),
            "STARTS": ",".join(map(str, [*starts[first : first + len(some)], *empty])),
        }
        grid = (*blocks(max(a.size for a in some)), len(some))
        launch(specialised("pack", **layout), grid, (256,), (*some, *[None] * len(empty), flat))


def average(a: Array, p: Array, blend: float) -> None:
    expect("average", "p", p, a.shape)
    args = (a, p, numbers(a, np.array([blend], np.float32)), a.size)
    launch(specialised("average"), blocks(a.size), (256,), args)


def add(a: Array, b: Array, out: Array | None = None) -> Array:
    a, b = float32("add", a=a, b=b)
    expect("add", "b", b, a.shape)
    y = empty(a, a.shape) if out is None else out
    launch(specialised("add"), blocks(a.size), (256,), (a, b, y, a.size))
    return y


def scale(x: Array, s: Array) -> Array:
    x, s = float32("scale", x=x, s=s)
    y = empty(x, x.shape)
    launch(specialised("scale"), blocks(x.size), (256,), (x, s, y, x.size))
    return y


def adam_hyper(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int
) -> np.ndarray:
    """The six numbers that adam.cu reads, float32; see its header."""
    rate, correction = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    decay = 1 - lr * weight_decay
    return np.array([1 - beta1, 1 - beta2, rate, correction, eps, decay], np.float32)


def adam_step(p: Array, g: Array, m: Array, v: Array, hyper: Array) -> None:
    """adam with its numbers in device memory: those of adam_hyper."""
    for name, a in (("g", g), ("m", m), ("v", v)):
        expect("adam", name, a, p.shape)
    expect("adam", "hyper", hyper, (6,))
    launch(specialised("adam"), blocks(p.size), (256,), (p, g, m, v, hyper, p.size))


def adam(
    p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int,
) -> None:  # fmt: skip
    hyper = adam_hyper(lr, beta1, beta2, eps, weight_decay, step)
    adam_step(p, g, m, v, numbers(p, hyper))


def philox_uniform(
    out: Array, key: Pair, step: int = 0, first_block: int = 1, low: float = 0.0, high: float = 1.0
) -> None:
    """Fill out with U[low, high), bit by bit what minigan.array.Stream draws.

    key: (seed, 64-bit key of the stream's name). first_block: 1 + the blocks of 8 already drawn.
    """
    below = np.nextafter(np.float32(high), np.float32(low))
    args = (out, out.size, *key, step, first_block, low, high - low, below)
    launch(specialised("philox_uniform"), (math.ceil(out.size / 2048),), (256,), args)


def philox_normal(
    out: Array, key: Pair, step: int = 0, first_block: int = 1, mean: float = 0.0, std: float = 1.0
) -> None:
    """Fill out with N(mean, std²), within a few ulps of what minigan.array.Stream draws."""
    args = (out, out.size, *key, step, first_block, mean, std)
    launch(specialised("philox_normal"), (math.ceil(out.size / 2048),), (256,), args)
