"""The kernel contract on our CUDA kernels: check, allocate, launch; launcher.py says who runs them.

Float32 only: reference.py and cpu.py do other dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from minigan.array import Array, xp_of
from minigan.kernels.launcher import (
    Kernel,
    Launch,
    is_planning,
    launch,
    launch_log,
    numbers,
    set_checks,
)
from minigan.kernels.plan import Geometry, Plan, choose
from minigan.kernels.reference import Pads, Pair

__all__ = [
    "Epilogue",
    "Kernel",
    "Launch",
    "adam",
    "adam_hyper",
    "adam_step",
    "add",
    "average",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "bce_with_logits",
    "bias_act",
    "bias_act_backward",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "launch",
    "launch_log",
    "logistic_d",
    "logit_figures",
    "matmul",
    "pack",
    "philox_normal",
    "philox_uniform",
    "scale",
    "set_checks",
    "tf32",
]

Dims = tuple[int, ...]

_tf32 = False


@contextmanager
def tf32(enabled: bool = True) -> Iterator[None]:
    """Context manager: products inside round their operands to TF32 (10 bits of mantissa, float32's
    range) and run on tensor cores. Needs compute capability 8.0. The default is full float32.
    """
    global _tf32
    previous, _tf32 = _tf32, enabled
    try:
        yield
    finally:
        _tf32 = previous


# ---- What the contract's functions share --------------------------------------------------------

ACTIVATIONS = {  # act(x), and act'(x) from y = act(x); see reference.ACTIVATIONS
    "linear": ("(x)", "1.0f"),
    "relu": ("((x) < 0.0f ? 0.0f : (x))", "((y) > 0.0f ? 1.0f : 0.0f)"),
    "leaky_relu": ("((x) > 0.0f ? (x) : (x) * {slope})", "((y) > 0.0f ? 1.0f : {slope})"),
    "tanh": ("tanhf(x)", "(1.0f - (y) * (y))"),
    "sigmoid": ("(1.0f / (1.0f + expf(-(x))))", "((y) * (1.0f - (y)))"),
}


def _activation(act: str, slope: float) -> dict[str, str]:
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, not {act!r}")
    forward, gradient = ACTIVATIONS[act]
    literal = f"{float(slope)!r}f"
    return {
        "ACT(x)": forward.replace("{slope}", literal),
        "ACT_GRAD(y)": gradient.replace("{slope}", literal),
    }


def _kernel(name: str, **defines: Any) -> Kernel:
    return Kernel(name, tuple(defines.items()))


def _float32(op: str, **arrays: Array) -> list[Array]:
    """The arrays, C-contiguous (copied if they are not)."""
    for name, a in arrays.items():
        if a.dtype != np.float32:
            raise TypeError(
                f"{op}: {name} is {a.dtype}, but the CUDA kernels compute in float32 alone; "
                f"convert it with astype('float32'), or use device cpu"
            )
        if a.size >= 2**31:
            raise ValueError(f"{op}: {name} has {a.size} elements, more than 32-bit indices reach")
    return [xp_of(a).ascontiguousarray(a) for a in arrays.values()]


def _empty(like: Array, shape: Dims) -> Array:
    """An unwritten float32 array beside `like`, for a result; while planning, of zeros."""
    xp = xp_of(like)
    return (xp.zeros if is_planning() else xp.empty)(shape, np.float32)


def _workspace(like: Array, shape: Dims) -> Array:
    """The same for what one kernel leaves to the next: sim finds a read before the write."""
    if xp_of(like) is not np:
        return _empty(like, shape)
    from minigan.kernels import sim

    return sim.empty(shape)


def _expect(op: str, name: str, a: Array, shape: Dims) -> None:
    if a.shape != shape:
        raise ValueError(f"{op}: {name} has shape {a.shape}, but {shape} is expected")


def _blocks(n: int) -> Dims:
    return (math.ceil(n / 256),)


class Epilogue(NamedTuple):
    """What becomes of a product: act(product + bias), the bias along one axis of the output."""

    bias: Array | None = None
    act: str = "linear"
    slope: float = 0.0

    def checked(self, op: str, size: int) -> Epilogue:
        """It, its bias contiguous.   size: that the bias must have."""
        if self.bias is None:
            return self
        (bias,) = _float32(op, bias=self.bias)
        _expect(op, "bias", bias, (size,))
        return self._replace(bias=bias)

    @property
    def defines(self) -> dict[str, Any]:
        act = _activation(self.act, self.slope)["ACT(x)"]
        return {"BIAS": int(self.bias is not None), "ACT(x)": act}


def _product(
    kernel: str,
    operands: Sequence[Array],
    out: Array,
    plan: Plan,
    sizes: Sequence[int],
    defines: Mapping[str, Any],
    epilogue: Epilogue | None = None,
    channels: Dims = (1, 1),
) -> None:
    """Launch a product of gemm.cu; with splits, into slices that reduce_slices then adds.

    epilogue: None for a kernel that has none.   channels: (n, inner), see reduce.cu.
    """
    split = plan.splits > 1
    slices = _workspace(out, (plan.splits, *out.shape)) if split else out
    if slices.size >= 2**31:
        raise ValueError(f"{kernel}: {slices.size} partial sums, more than 32-bit indices reach")
    defines = {kernel.upper(): 1, **plan.tile.defines, **defines}
    if _tf32 and plan.tile.tm >= 4:  # the smallest tile is narrower than a tensor core's
        defines["TF32"] = 1
    last = epilogue or Epilogue()
    if epilogue and not split:
        defines |= epilogue.defines
    biases = (None if split else epilogue.bias,) if epilogue else ()
    args = (*operands, *biases, slices, *sizes, plan.splits, plan.split_steps)
    launch(_kernel(kernel, **defines), plan.grid, plan.block, args)
    if split:
        args = (slices, last.bias, out, plan.splits, out.size, *channels)
        launch(_kernel("reduce_slices", **last.defines), _blocks(out.size), (256,), args)


# ---- The contract, as in reference.py -----------------------------------------------------------


def matmul(
    x: Array,
    b: Array,
    bias: Array | None = None,
    act: str = "linear",
    slope: float = 0.0,
) -> Array:
    """act(x @ b + bias[m]): x (...,n,k), b (...,k,m) -> (...,n,m).

    A transposed view of a contiguous array is read as it lies, without a copy.
    """
    try:
        batch = np.broadcast_shapes(x.shape[:-2], b.shape[:-2])
    except ValueError:
        batch = None
    if batch is None or min(x.ndim, b.ndim) < 2 or x.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: cannot multiply x {x.shape} by b {b.shape}")
    (n, k), m = x.shape[-2:], b.shape[-1]
    x, x_step, x_transposed = _matrices(x, "x", batch)
    b, b_step, b_transposed = _matrices(b, "b", batch)
    epilogue = Epilogue(bias, act, slope).checked("matmul", m)
    out = _empty(x, (*batch, n, m))
    defines = {"TRANS_A": x_transposed, "TRANS_B": b_transposed, "ALIGNED": int(m % 4 == 0)}
    plan = choose(n, m, k, math.prod(batch))
    _product("matmul", (x, b), out, plan, (n, m, k, x_step, b_step), defines, epilogue, (m, 1))
    return out


def _matrices(a: Array, name: str, batch: Dims) -> tuple[Array, int, int]:
    """(a contiguous, elements from one matrix to the next, 1 if its matrices lie transposed)"""
    lead, size = a.shape[:-2], math.prod(a.shape[-2:])
    transposed = not a.flags.c_contiguous and a.swapaxes(-1, -2).flags.c_contiguous
    if transposed:
        a = a.swapaxes(-1, -2)
    if lead != batch and math.prod(lead) != 1:
        a = xp_of(a).broadcast_to(a, (*batch, *a.shape[-2:]))
    (a,) = _float32("matmul", **{name: a})
    return a, size if math.prod(lead) != 1 else 0, int(transposed)


def conv2d(
    x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    epilogue: Epilogue | None = None,
) -> Array:  # fmt: skip
    x, w = _float32("conv2d", x=x, w=w)
    _expect("conv2d", "w", w, (len(w), x.shape[1] // groups, *w.shape[2:]))
    z = Geometry.of(x.shape, w.shape, stride, pad, dilation, groups)
    y = _empty(x, (len(x), z.K, z.P, z.Q))
    epilogue = (epilogue or Epilogue()).checked("conv2d", z.K)
    plan, channels = z.plan_forward(len(x)), (z.K, z.P * z.Q)
    _product("conv2d", (x, w), y, plan, (len(x),), asdict(z), epilogue, channels)
    return y


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    epilogue: Epilogue | None = None,
) -> Array:  # fmt: skip
    g, w = _float32("conv2d_dgrad", g=g, w=w)
    n = len(g)
    gx = _empty(g, (n, w.shape[1] * groups, *size))
    z = Geometry.of(gx.shape, w.shape, stride, pad, dilation, groups)
    _expect("conv2d_dgrad", "g", g, (n, z.K, z.P, z.Q))
    epilogue = (epilogue or Epilogue()).checked("conv2d_dgrad", z.C)
    if not z.prefers_col2im(n):
        plan, channels = z.plan_dgrad(n), (z.C, z.H * z.W)
        _product("conv2d_dgrad", (g, w), gx, plan, (n,), asdict(z), epilogue, channels)
        return gx
    cols = _workspace(g, (n, z.C * z.R * z.S, z.P, z.Q))
    plan, defines = z.one_tap.plan_dgrad(n), asdict(z.one_tap)
    _product("conv2d_dgrad", (g, w), cols, plan, (n,), defines, Epilogue())
    col2im = _kernel("col2im", **asdict(z), **epilogue.defines)
    launch(col2im, _blocks(gx.size), (256,), (cols, epilogue.bias, gx, n))
    return gx


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    x, g = _float32("conv2d_wgrad", x=x, g=g)
    gw = _empty(x, (g.shape[1], x.shape[1] // groups, *taps))
    z = Geometry.of(x.shape, gw.shape, stride, pad, dilation, groups)
    _expect("conv2d_wgrad", "g", g, (len(x), z.K, z.P, z.Q))
    _product("conv2d_wgrad", (x, g), gw, z.plan_wgrad(len(x)), (len(x),), asdict(z))
    return gw


def _by_channel(x: Array) -> tuple[int, int, int, dict[str, Any]]:
    """(channels, elements of each, slices of each, definitions) for channels.cu.

    One slice if a block can hold it: 16 elements a thread.
    """
    c, m = x.shape[1], x.size // x.shape[1]
    threads = next((t for t in (256, 512, 1024) if m <= 16 * t), 256)
    defines: dict[str, Any] = {"C": c, "INNER": math.prod(x.shape[2:]), "THREADS": threads}
    return c, m, math.ceil(m / (16 * threads)), defines


def bias_act(x: Array, bias: Array | None, act: str, slope: float) -> Array:
    (x,) = _float32("bias_act", x=x)
    if bias is not None:
        (bias,) = _float32("bias_act", bias=bias)
        _expect("bias_act", "bias", bias, (x.shape[1],))
    y = _empty(x, x.shape)
    defines = {"C": x.shape[1], "INNER": math.prod(x.shape[2:]), "BIAS": int(bias is not None)}
    kernel = _kernel("bias_act", **defines, **_activation(act, slope))
    launch(kernel, _blocks(x.size), (256,), (x, bias, y, x.size))
    return y


def bias_act_backward(
    g: Array, y: Array, act: str, slope: float, with_bias: bool = True
) -> tuple[Array, Array]:
    g, y = _float32("bias_act_backward", g=g, y=y)
    _expect("bias_act_backward", "g", g, y.shape)
    c, m, slices, defines = _by_channel(y)
    gx = g if act == "linear" else _empty(y, y.shape)
    gbias = _empty(y, (c,))
    partials = _workspace(y, (slices, c)) if slices > 1 else gbias
    defines |= _activation(act, slope) | {"GX": int(gx is not g)}
    args = (g, y, None if gx is g else gx, partials, m)
    launch(_kernel("bias_act_backward", **defines), (slices, c), (defines["THREADS"],), args)
    if slices > 1 and with_bias:
        whole = (partials, None, gbias, slices, c, c, 1)
        launch(_kernel("reduce_slices"), _blocks(c), (256,), whole)
    return gx, gbias


def batch_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float, act: str, slope: float
) -> tuple[Array, Array, Array]:
    (x,) = _float32("batch_norm", x=x)
    c, m, slices, defines = _by_channel(x)
    for name, a in (("weight", weight), ("bias", bias)):
        if a is not None:
            _expect("batch_norm", name, a, (c,))
    weight, bias = (None if a is None else _float32("batch_norm", a=a)[0] for a in (weight, bias))
    mean, rstd = (_empty(x, (c,)) for _ in range(2))
    y = _empty(x, x.shape)
    defines |= _activation(act, slope)
    defines |= {"WEIGHT": int(weight is not None), "BIAS": int(bias is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    if slices == 1:
        once = (x, weight, bias, y, mean, rstd, m, eps)
        launch(_kernel("batch_norm", **defines), grid, block, once)
        return y, mean, rstd
    means, squares = (_workspace(x, (slices, c)) for _ in range(2))
    launch(_kernel("batch_norm_stats", **defines), grid, block, (x, means, squares, m))
    args = (x, weight, bias, means, squares, y, mean, rstd, m, eps)
    launch(_kernel("batch_norm_apply", **defines), grid, block, args)
    return y, mean, rstd


def batch_norm_backward(
    g: Array, x: Array, y: Array, weight: Array | None, mean: Array, rstd: Array, act: str,
    slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    g, x, y, mean, rstd = _float32("batch_norm_backward", g=g, x=x, y=y, mean=mean, rstd=rstd)
    c, m, slices, defines = _by_channel(x)
    for name, a, shape in (("g", g, x.shape), ("y", y, x.shape), ("mean", mean, (c,))):
        _expect("batch_norm_backward", name, a, shape)
    if weight is not None:
        (weight,) = _float32("batch_norm_backward", weight=weight)
        _expect("batch_norm_backward", "weight", weight, (c,))
    gweight, gbias = (_empty(x, (c,)) for _ in range(2))
    gx = _empty(x, x.shape)
    defines |= _activation(act, slope) | {"WEIGHT": int(weight is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    if slices == 1:
        args = (g, x, y, weight, mean, rstd, gx, gweight, gbias, m)
        launch(_kernel("batch_norm_backward", **defines), grid, block, args)
        return gx, gweight, gbias
    partials = [_workspace(x, (slices, c)) for _ in range(2)]
    sums = _kernel("batch_norm_backward_sums", **defines)
    launch(sums, grid, block, (g, x, y, mean, rstd, *partials, m))
    args = (g, x, y, weight, mean, rstd, *partials, gx, gweight, gbias, m)
    launch(_kernel("batch_norm_backward_apply", **defines), grid, block, args)
    return gx, gweight, gbias


def batch_norm_double_backward(
    ggx: Array, g: Array, x: Array, y: Array, weight: Array | None, mean: Array, rstd: Array,
    gweight: Array, gbias: Array, act: str, slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    op = "batch_norm_double_backward"
    c, m, slices, defines = _by_channel(x)
    for name, a in (("ggx", ggx), ("g", g), ("y", y)):
        _expect(op, name, a, x.shape)
    for name, a in (("weight", weight), ("mean", mean), ("rstd", rstd), ("gweight", gweight),
                    ("gbias", gbias)):  # fmt: skip
        if a is not None:
            _expect(op, name, a, (c,))
    ggx, g, x, y, mean, rstd, gweight, gbias = _float32(
        op, ggx=ggx, g=g, x=x, y=y, mean=mean, rstd=rstd, gweight=gweight, gbias=gbias
    )
    if weight is not None:
        (weight,) = _float32(op, weight=weight)
    gg, gx, gw = (_empty(x, shape) for shape in (x.shape, x.shape, (c,)))
    defines |= _activation(act, slope) | {"WEIGHT": int(weight is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    given, out = (ggx, g, x, y, weight, mean, rstd, gweight, gbias), (gg, gx, gw)
    if slices == 1:
        launch(_kernel(op, **defines), grid, block, (*given, *out, m))
        return out
    partials = _workspace(x, (3, slices, c))
    args = (ggx, g, x, y, mean, rstd, partials, m)
    launch(_kernel(f"{op}_sums", **defines), grid, block, args)
    launch(_kernel(f"{op}_apply", **defines), grid, block, (*given, partials, *out, m))
    return out


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    (x,) = _float32("bce_with_logits", x=x)
    loss, gx = _empty(x, ()), _empty(x, x.shape)
    launch(_kernel("bce_with_logits"), (1,), (256,), (x, loss, gx, x.size, target))
    return loss, gx


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    real, fake = _float32("logistic_d", real=real, fake=fake)
    loss, gx = _empty(real, ()), _empty(real, (real.size + fake.size,))
    args = (real, fake, loss, gx, real.size, fake.size, target)
    launch(_kernel("logistic_d"), (1,), (256,), args)
    return loss, gx


def logit_figures(real: Array, fake: Array) -> Array:
    real, fake = _float32("logit_figures", real=real, fake=fake)
    figures = _empty(real, (6,))
    args = (real, fake, figures, real.size, fake.size)
    launch(_kernel("logit_figures"), (1,), (256,), args)
    return figures


def pack(arrays: Sequence[Array], starts: Sequence[int], flat: Array) -> None:
    (_,) = _float32("pack", flat=flat)
    for first in range(0, len(arrays), 8):
        named = {f"arrays[{first + i}]": a for i, a in enumerate(arrays[first : first + 8])}
        some, empty = _float32("pack", **named), [0] * (8 - len(named))
        layout = {
            "SIZES": ",".join(map(str, [a.size for a in some] + empty)),
            "STARTS": ",".join(map(str, [*starts[first : first + len(some)], *empty])),
        }
        grid = (*_blocks(max(a.size for a in some)), len(some))
        launch(_kernel("pack", **layout), grid, (256,), (*some, *[None] * len(empty), flat))


def average(a: Array, p: Array, blend: float) -> None:
    _expect("average", "p", p, a.shape)
    args = (a, p, numbers(a, np.array([blend], np.float32)), a.size)
    launch(_kernel("average"), _blocks(a.size), (256,), args)


def add(a: Array, b: Array, out: Array | None = None) -> Array:
    a, b = _float32("add", a=a, b=b)
    _expect("add", "b", b, a.shape)
    y = _empty(a, a.shape) if out is None else out
    launch(_kernel("add"), _blocks(a.size), (256,), (a, b, y, a.size))
    return y


def scale(x: Array, s: Array) -> Array:
    x, s = _float32("scale", x=x, s=s)
    y = _empty(x, x.shape)
    launch(_kernel("scale"), _blocks(x.size), (256,), (x, s, y, x.size))
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
        _expect("adam", name, a, p.shape)
    _expect("adam", "hyper", hyper, (6,))
    launch(_kernel("adam"), _blocks(p.size), (256,), (p, g, m, v, hyper, p.size))


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
    launch(_kernel("philox_uniform"), (math.ceil(out.size / 2048),), (256,), args)


def philox_normal(
    out: Array, key: Pair, step: int = 0, first_block: int = 1, mean: float = 0.0, std: float = 1.0
) -> None:
    """Fill out with N(mean, std²), within a few ulps of what minigan.array.Stream draws."""
    args = (out, out.size, *key, step, first_block, mean, std)
    launch(_kernel("philox_normal"), (math.ceil(out.size / 2048),), (256,), args)
