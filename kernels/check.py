"""Every kernel against reference.py in float64, on a device: what `minigan kernels check` runs.

The tolerance is a rule: an error is at most twice that of the reference in float32, plus a few
roundings (`floor`) of the largest result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigan.array import Array, Stream, to_device, to_numpy
from minigan.kernels import cuda, reference
from minigan.kernels.catalogue import RUNGS, conv2d_by
from minigan.kernels.reference import Pads, Pair

EPS = float(np.finfo(np.float32).eps)
Results = tuple[np.ndarray, ...]
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """A computation to compare. kernels: those that it launches, of which it must launch one.

    on_device(to): the results by the kernels, to(array) puts one on the device.
    exactly(dtype): the same by the reference, in that dtype.
    """

    name: str
    what: str
    kernels: tuple[str, ...]
    on_device: Callable[[Callable[[np.ndarray], Array]], Any]
    exactly: Callable[[Any], Any]
    floor: float = 4.0


@dataclass(frozen=True)
class Outcome:
    """error, tolerance: absolute. failure: why there is no error to tell, or empty."""

    name: str
    what: str
    launched: tuple[str, ...]
    error: float
    tolerance: float
    failure: str = ""

    @property
    def good(self) -> bool:
        return not self.failure and self.error <= self.tolerance


def run(check: Check, device: str) -> Outcome:
    """Launch and compare. A kernel that cannot run is an outcome too."""
    with cuda.launch_log() as log:
        try:
            got = _tuple(check.on_device(lambda a: to_device(a.copy(), device)))
            got = tuple(to_numpy(a) for a in got)
        except MemoryError:
            raise
        except Exception as error:
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            return Outcome(check.name, check.what, (), np.nan, np.nan, failure)
    launched = tuple(dict.fromkeys(line.kernel for line in log))
    plain, exact = _tuple(check.exactly(np.float32)), _tuple(check.exactly(np.float64))
    if missing := [k for k in check.kernels if k not in launched]:
        failure = f"{', '.join(missing)} was not launched"
        return Outcome(check.name, check.what, launched, np.nan, np.nan, failure)
    worst = (0.0, 0.0)
    for mine, theirs, right in zip(got, plain, exact, strict=True):
        off = _difference(mine, right)
        allowed = 2 * _difference(theirs, right) + check.floor * EPS * float(abs(right).max())
        worst = max(worst, (off, allowed), key=lambda pair: pair[0] / max(pair[1], 1e-300))
    return Outcome(check.name, check.what, launched, *worst)


def _tuple(results: Any) -> Results:
    return results if isinstance(results, tuple) else (results,)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nan_to_num(abs(a.astype(np.float64) - b), nan=np.inf).max())


# ---- The checks ---------------------------------------------------------------------------------


def _values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def checks(tf32: bool = True) -> Iterator[Check]:
    """All of them. tf32: those on tensor cores too, which need compute capability 8.0."""
    yield from _convolutions()
    yield from _epilogues()
    yield from _products()
    if tf32:
        yield from _tensor_cores()
    yield from _activations()
    yield from _batch_norm()
    yield from _flat_buffers()
    yield from _elementwise()
    yield from _losses()
    yield from _random_numbers()


def _contract(
    name: str, what: str, kernels: tuple[str, ...], *args: Any, floor: float = 4.0, by: Any = None
) -> Check:
    """cuda.NAME (or `by`) against reference.NAME."""

    def apply(function: Any, convert: Callable[[np.ndarray], Array]) -> Any:
        return function(*(convert(a) if isinstance(a, np.ndarray) else a for a in args))

    return Check(
        name,
        what,
        kernels,
        lambda to: apply(by or getattr(cuda, name), to),
        lambda dtype: apply(getattr(reference, name), lambda a: a.astype(dtype)),
        floor,
    )


# What a layer may be: several blocks and depth steps with tails; stride, pad and dilation; groups.
_CASES: tuple[tuple[str, Dims, Dims, Pair, Pads, Pair, int], ...] = (
    ("3×3, 20 → 70", (3, 20, 9, 7), (70, 20, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ("4×4 stride 2, 9 → 33", (4, 9, 10, 12), (33, 9, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ("7×7 to a pixel, 8 → 1", (6, 8, 7, 7), (1, 8, 7, 7), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ("stride 3 > kernel 2", (2, 3, 11, 10), (5, 3, 2, 2), (3, 3), ((2, 0), (1, 3)), (1, 1), 1),
    ("dilation 2, 2 groups", (2, 6, 9, 9), (8, 3, 3, 3), (1, 2), ((2, 2), (2, 2)), (2, 2), 2),
)


def _convolutions() -> Iterator[Check]:
    for what, shape_x, shape_w, stride, pad, dilation, groups in _CASES:
        rest = (stride, pad, dilation, groups)
        x, w = _values(0, *shape_x), _values(1, *shape_w)
        size, taps = (shape_x[2], shape_x[3]), (shape_w[2], shape_w[3])
        out = reference.conv_out_size(size, taps, stride, pad, dilation)
        g = _values(2, shape_x[0], shape_w[0], *out)
        forward, dgrad, wgrad = ("conv2d",), ("conv2d_dgrad",), ("conv2d_wgrad",)
        if out == (1, 1):  # a product of a matrix and a vector
            forward, dgrad, wgrad = ("matmul_dot",), ("matmul_thread",), ("matmul_thread",)
        yield _contract("conv2d", what, forward, x, w, *rest)
        yield _contract("conv2d_dgrad", what, dgrad, g, w, size, *rest)
        yield _contract("conv2d_wgrad", what, wgrad, x, g, taps, *rest)
    g, w = _values(2, 2, 64, 14, 14), _values(1, 64, 2, 7, 7)
    few_channels = (g, w, (14, 14), (1, 1), ((3, 3), (3, 3)), (1, 1), 1)
    yield _contract("conv2d_dgrad", "7×7, 64 → 2: GEMM + col2im", ("col2im",), *few_channels)
    what, shape_x, shape_w, stride, pad, dilation, _ = _CASES[1]
    x, w = _values(0, *shape_x), _values(1, *shape_w)
    for rung in RUNGS:
        check = _contract("conv2d", what, (rung,), x, w, stride, pad, dilation, 1, by=_rung(rung))
        yield Check(rung, what, (rung,), check.on_device, check.exactly)


def _rung(rung: str) -> Callable[..., Array]:
    def by(x: Array, w: Array, stride: Any, pad: Any, dilation: Any, groups: int) -> Array:
        return conv2d_by(rung, x, w, stride, pad, dilation)

    return by


def _products() -> Iterator[Check]:
    """BLAS sums in eight parts and more, which makes its error smaller: hence the floor."""
    for what, m, n, k, act, bias in (
        ("133 × 70 · 70 × 131", 133, 131, 70, "linear", False),
        ("8 × 700 · 700 × 9, relu: split", 8, 9, 700, "relu", True),
    ):
        a, b, c = _values(0, m, k), _values(1, k, n), _values(2, n) if bias else None
        yield Check(
            "matmul",
            what,
            ("matmul", "reduce_slices") if "split" in what else ("matmul",),
            lambda to, a=a, b=b, c=c, act=act: cuda.matmul(  # type: ignore[misc]
                to(a), to(b), bias=None if c is None else to(c), act=act
            ),
            lambda dtype, a=a, b=b, c=c, act=act: reference.bias_act(  # type: ignore[misc]
                a.astype(dtype) @ b.astype(dtype), None if c is None else c.astype(dtype), act, 0.0
            ),
            floor=16.0,
        )


def _round_to_tf32(a: np.ndarray) -> np.ndarray:
    """To 10 bits of mantissa, ties away from zero, as the kernels round their operands."""
    bits = a.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _tensor_cores() -> Iterator[Check]:
    a, b = _values(0, 520, 70), _values(1, 70, 500)  # large enough for a tile that they can do
    exact = [_round_to_tf32(a), _round_to_tf32(b)]

    def product(to: Any) -> Array:
        with cuda.tf32():
            return cuda.matmul(to(a), to(b))

    yield Check(
        "matmul",
        "TF32, of operands rounded to TF32",
        ("matmul",),
        product,
        lambda dtype: exact[0].astype(dtype) @ exact[1].astype(dtype),
        floor=16.0,
    )


_ONE_SLICE, _MORE = (5, 3, 31, 33), (17, 2, 31, 33)  # a channel in one block, and in several


def _activations() -> Iterator[Check]:
    for act in reference.ACTIVATIONS:
        shape = _MORE if act == "relu" else _ONE_SLICE
        x, g, bias = _values(0, *shape), _values(1, *shape), _values(2, shape[1])
        yield _contract("bias_act", act, ("bias_act",), x, bias, act, 0.2)
        y = reference.bias_act(x, bias, act, 0.2).astype(np.float32)
        kernels = ("bias_act_backward", *(["pack"] if shape == _MORE else []))
        yield _contract("bias_act_backward", act, kernels, g, y, act, 0.2, floor=8.0)


def _epilogues() -> Iterator[Check]:
    """Bias and activation at the end of a convolution, in each place where that may be."""
    for what, shape_x, shape_w, stride, pad, kernels in (
        ("conv2d", (3, 20, 9, 7), (70, 20, 3, 3), 1, 1, ("conv2d",)),
        ("conv2d", (2, 70, 5, 5), (20, 70, 3, 3), 1, 0, ("conv2d", "reduce_slices")),
        ("conv2d", (6, 8, 7, 7), (1, 8, 7, 7), 1, 0, ("matmul_dot",)),
        ("conv2d_dgrad", (6, 8, 7, 7), (1, 8, 7, 7), 1, 0, ("matmul_thread",)),
        ("conv2d_dgrad", (4, 9, 10, 12), (33, 9, 4, 4), 2, 1, ("conv2d_dgrad",)),
        ("conv2d_dgrad", (2, 2, 14, 14), (64, 2, 7, 7), 1, 3, ("col2im",)),
    ):
        strides, pads, dilation = (stride, stride), ((pad, pad), (pad, pad)), (1, 1)
        size, taps = (shape_x[2], shape_x[3]), (shape_w[2], shape_w[3])
        out = reference.conv_out_size(size, taps, strides, pads, dilation)
        forward = what == "conv2d"
        x = _values(0, *(shape_x if forward else (shape_x[0], shape_w[0], *out)))
        arrays = x, _values(1, *shape_w), _values(2, shape_w[0] if forward else shape_x[1])
        rest = (*(() if forward else (size,)), strides, pads, dilation, 1)

        def by_kernels(to: Any, what: str = what, arrays: Any = arrays, rest: Any = rest) -> Array:
            x, w, bias = map(to, arrays)
            return getattr(cuda, what)(x, w, *rest, cuda.Epilogue(bias, "leaky_relu", 0.2))

        def exactly(dtype: Any, what: str = what, arrays: Any = arrays, rest: Any = rest) -> Array:
            x, w, bias = (a.astype(dtype) for a in arrays)
            y = getattr(reference, what)(x, w, *rest)
            return reference.bias_act(y, bias, "leaky_relu", 0.2)

        label = f"bias, leaky_relu, in {kernels[-1]}"
        yield Check(what, label, kernels, by_kernels, exactly, floor=8.0)


def _batch_norm() -> Iterator[Check]:
    for act, shape in (("leaky_relu", _ONE_SLICE), ("relu", _ONE_SLICE), ("leaky_relu", _MORE)):
        x, g = 3 * _values(0, *shape) + 2, _values(1, *shape)
        affine = act == "leaky_relu"
        weight, bias = (_values(i, shape[1]) if affine else None for i in (2, 3))
        more, parts = shape == _MORE, ("_sums", "_apply")
        what = f"{'affine' if affine else 'not affine'}, {act}{', slices' if more else ''}"
        kernels: tuple[str, ...] = ("batch_norm",)
        if more:
            kernels = ("batch_norm_stats", "batch_norm_apply")
        yield _contract("batch_norm", what, kernels, x, weight, bias, 1e-5, act, 0.2, floor=16.0)
        y, mean, rstd = (
            a.astype(np.float32) for a in reference.batch_norm(x, weight, bias, 1e-5, act, 0.2)
        )
        args = (g, x, y, weight, mean, rstd, act, 0.2)
        kernels = tuple(f"batch_norm_backward{part}" for part in (parts if more else ("",)))
        yield _contract("batch_norm_backward", what, kernels, *args, floor=16.0)
        _, *sums = (a.astype(np.float32) for a in reference.batch_norm_backward(*args))
        args = (_values(4, *shape), *args[:6], *sums, act, 0.2)
        kernels = tuple(f"batch_norm_double_backward{part}" for part in (parts if more else ("",)))
        yield _contract("batch_norm_double_backward", what, kernels, *args, floor=16.0)

    for momentum in (0.1, None):
        given = [_values(i, 300) for i in range(4)]
        given[1], given[3] = abs(given[1]) + 0.5, abs(given[3])

        def averaged(
            module: Any, convert: Any, momentum: Any = momentum, given: Any = given
        ) -> Any:
            batches = convert(np.array(4, np.int64))
            mean, rstd, *running = (convert(a.copy()) for a in given)
            module.batch_norm_averages(mean, rstd, *running, batches, momentum, 1e-5, 640)
            return (*running, batches)

        yield Check(
            "batch_norm_averages",
            f"momentum {momentum}",
            ("batch_norm_averages",),
            lambda to, f=averaged: f(cuda, to),  # type: ignore[misc]
            lambda dtype, f=averaged: f(  # type: ignore[misc]
                reference, lambda a: a.astype(dtype) if a.dtype == np.float32 else a
            ),
        )


def _flat_buffers() -> Iterator[Check]:
    p, g, m = (_values(i, 700) for i in range(3))
    start = (p, g, m, _values(3, 700) ** 2)
    hyper = (2e-3, 0.5, 0.999, 1e-8, 0.1, 7)

    def step(function: Any, arrays: list[Array]) -> Any:
        function(*arrays, *hyper)
        return arrays[0], arrays[2], arrays[3]

    yield Check(
        "adam",
        "step 7, weight decay 0.1",
        ("adam",),
        lambda to: step(cuda.adam, [to(a) for a in start]),
        lambda dtype: step(reference.adam, [a.astype(dtype) for a in start]),
    )

    parts = [_values(i, n) for i, n in enumerate((5, 300, 1, 64, 2, 9, 700, 33, 12))]
    starts = [0, *np.cumsum([len(a) + 3 for a in parts]).tolist()]  # a gap behind each

    def packed(to: Any) -> Array:
        flat = to(np.zeros(starts[-1], np.float32))
        cuda.pack([[to(a)] for a in parts], starts, flat)
        return flat

    joined = np.concatenate([np.append(a, np.zeros(3, np.float32)) for a in parts])
    what = f"{len(parts)} arrays, bit by bit"
    yield Check("pack", what, ("pack",), packed, lambda dtype: joined.astype(dtype), floor=0.0)

    sizes = (5, 300, 3, 64, 1, 9, 700, 33, 4)  # more than one launch, tails, several blocks
    rows = [[_values(10 * i + k, n) for k in range(1 + i % 4)] for i, n in enumerate(sizes)]
    rows[2][1:] = [_values(0, 7, 3, 5, 9), _values(1, 300, 3)]  # of biases: channels to sum
    rows[8][:2] = [_values(2, 2, 4, 3), _values(3, 4)]

    def summed(module: Any, convert: Any) -> Any:
        return tuple(module.totals([
            [reference.ChannelSum(convert(a)) if a.ndim > 1 else convert(a) for a in row]
            for row in rows
        ]))  # fmt: skip

    yield Check(
        "totals",
        f"{len(rows)} sums of up to 4 gradients",
        ("pack",),
        lambda to: summed(cuda, to),
        lambda dtype: summed(reference, lambda a: a.astype(dtype)),
        floor=8.0,
    )

    def averaged(to: Any) -> Array:
        a = to(p)
        cuda.average(a, to(g), 0.1)
        return a

    yield Check(
        "average",
        "blend 0.1",
        ("average",),
        averaged,
        lambda dtype: p.astype(dtype) + dtype(0.1) * (g.astype(dtype) - p.astype(dtype)),
    )


def _elementwise() -> Iterator[Check]:
    a, b, s = _values(0, 700), _values(1, 700), _values(2)
    yield _contract("add", "700 numbers", ("add",), a, b, floor=0.0)
    yield _contract("add", "700 numbers, factor 0.3", ("add",), a, b, None, 0.3, floor=1.0)
    for n in (700, 9000):
        what = f"{n} numbers"
        yield _contract("squares", what, ("squares",), _values(0, n), 0.3, floor=8.0)
    yield _contract("scale", "700 numbers", ("scale",), a, s, floor=1.0)


def _losses() -> Iterator[Check]:
    real, fake = 3 * _values(0, 300), 3 * _values(1, 64)

    def cross_entropy(dtype: Any, t: float, logits: np.ndarray = real) -> Any:
        x = logits.astype(dtype)
        loss = (np.maximum(x, 0) - dtype(t) * x + np.log1p(np.exp(-abs(x)))).mean()
        return np.asarray(loss), (1 / (1 + np.exp(-x)) - dtype(t)) / dtype(len(x))

    for t in (1.0, 0.9, 0.0):
        yield Check(
            "bce_with_logits",
            f"target {t:g}",
            ("bce_with_logits",),
            lambda to, t=t: cuda.bce_with_logits(to(real), t),  # type: ignore[misc]
            lambda dtype, t=t: cross_entropy(dtype, t),  # type: ignore[misc]
            floor=8.0,
        )

    def both(dtype: Any) -> Any:
        (on_real, g_real), (on_fake, g_fake) = (
            cross_entropy(dtype, t, x) for t, x in ((0.9, real), (0.0, fake))
        )
        return on_real + on_fake, np.concatenate([g_real, g_fake])

    yield Check(
        "logistic_d",
        "300 real, 64 fake, target 0.9",
        ("logistic_d",),
        lambda to: cuda.logistic_d(to(real), to(fake), 0.9),
        both,
        floor=8.0,
    )

    def figures(dtype: Any) -> Any:
        x, y = real.astype(dtype), fake.astype(dtype)
        sigma_x, sigma_y = (1 / (1 + np.exp(-a)) for a in (x, y))
        shares = (x > 0).astype(dtype).mean(), (y < 0).astype(dtype).mean()
        return np.array([sigma_x.mean(), sigma_y.mean(), *shares, x.mean(), y.mean()])

    yield Check(
        "logit_figures",
        "300 real, 64 fake",
        ("logit_figures",),
        lambda to: cuda.logit_figures(to(real), to(fake)),
        figures,
        floor=8.0,
    )


def _random_numbers() -> Iterator[Check]:
    """Against the host's stream, which is exact for uniform numbers: no error is allowed there."""
    seed, name, n = 3, "latents", 20001
    key = seed, int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    def filled(fill: Any, to: Any) -> Array:
        out = to(np.zeros(n, np.float32))
        fill(out, key)
        return out

    for law, floor in (("uniform", 0.0), ("normal", 4.0)):
        host = getattr(Stream(seed, name), law)(n)
        yield Check(
            f"philox_{law}",
            "bit by bit" if law == "uniform" else "within ulps",
            (f"philox_{law}",),
            lambda to, law=law: filled(getattr(cuda, f"philox_{law}"), to),  # type: ignore[misc]
            lambda dtype, host=host: host.astype(dtype),  # type: ignore[misc]
            floor,
        )
