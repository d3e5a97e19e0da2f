"""The kernel contract on our CUDA kernels: check, allocate, launch; launcher.py says who runs them.

Products are here, the rest is in channels.py and flat.py. Float32 only: reference.py and cpu.py do
other dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from minigan.array import Array, address, xp_of
from minigan.kernels.channels import (
    KEPT,
    batch_norm,
    batch_norm_averages,
    batch_norm_backward,
    batch_norm_double_backward,
    bias_act,
    bias_act_backward,
    bias_act_backward_later,
)
from minigan.kernels.flat import (
    adam,
    adam_hyper,
    adam_step,
    add,
    average,
    bce_with_logits,
    logistic_d,
    logit_figures,
    pack,
    philox_normal,
    philox_uniform,
    scale,
    squares,
    totals,
)
from minigan.kernels.launcher import Kernel, Launch, launch, launch_log, set_checks
from minigan.kernels.operands import (
    Dims,
    activation,
    blocks,
    empty,
    expect,
    float32,
    specialised,
    workspace,
)
from minigan.kernels.plan import Geometry, Plan, choose, thin
from minigan.kernels.reference import ChannelSum, Pads, Pair

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
    "batch_norm_averages",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "bce_with_logits",
    "bias_act",
    "bias_act_backward",
    "bias_act_backward_later",
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
    "squares",
    "tf32",
    "totals",
]

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


class Epilogue(NamedTuple):
    """What becomes of a product: act(product + bias), the bias along one axis of the output."""

    bias: Array | None = None
    act: str = "linear"
    slope: float = 0.0

    def checked(self, op: str, size: int) -> Epilogue:
        """It, its bias contiguous.   size: that the bias must have."""
        if self.bias is None:
            return self
        (bias,) = float32(op, bias=self.bias)
        expect(op, "bias", bias, (size,))
        return self._replace(bias=bias)

    @property
    def defines(self) -> dict[str, Any]:
        act = activation(self.act, self.slope)["ACT(x)"]
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
    later: bool = False,
) -> Array | ChannelSum:
    """Launch a product of gemm.cu; with splits, into slices that reduce_slices then adds.

    epilogue: None for a kernel that has none.   channels: (n, inner), see reduce.cu.
    Returns out, or if `later` perhaps the slices, for `totals` to add.
    """
    split = plan.splits > 1
    slices = workspace(out, (plan.splits, *out.shape)) if split else out
    if slices.size >= 2**31:
        raise ValueError(f"{kernel}: {slices.size} partial sums, more than 32-bit indices reach")
    aligned = all(address(a) % 16 == 0 for a in operands)
    defines = {kernel.upper(): 1, **plan.tile.defines, **defines, "ALIGNED": int(aligned)}
    if _tf32 and plan.tile.fits_tensor_cores:
        defines["TF32"] = 1
    last = epilogue or Epilogue()
    if epilogue and not split:
        defines |= epilogue.defines
    biases = (None if split else epilogue.bias,) if epilogue else ()
    args = (*operands, *biases, slices, *sizes, plan.splits, plan.split_steps)
    launch(specialised(kernel, **defines), plan.grid, plan.block, args)
    if split and later and slices.size <= KEPT:
        return ChannelSum(slices.reshape(plan.splits, out.size), out.shape)
    if split:
        args = (slices, last.bias, out, plan.splits, out.size, *channels)
        launch(specialised("reduce_slices", **last.defines), blocks(out.size), (256,), args)
    return out


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
    epilogue = Epilogue(bias, act, slope).checked("matmul", b.shape[-1])
    return _matmul(x, b, batch, epilogue)


def _matmul(x: Array, b: Array, batch: Dims, epilogue: Epilogue, inner: int = 1) -> Array:
    """x @ b of shapes that fit.   inner: columns that share an element of the bias."""
    (n, k), m = x.shape[-2:], b.shape[-1]
    x, x_step, x_transposed = _matrices(x, "x", batch)
    b, b_step, b_transposed = _matrices(b, "b", batch)
    out = empty(x, (*batch, n, m))
    cut = thin(n, m, k, x_transposed, b_transposed) if math.prod(batch) == 1 else None
    if cut is not None:
        operands, inner = ((b, x), n) if cut.swapped else ((x, b), inner)
        args = (*operands, epilogue.bias, out, *cut.sizes, inner)
        launch(specialised(cut.kernel, **epilogue.defines), cut.grid, cut.block, args)
        return out
    defines = {
        "TRANS_A": int(x_transposed),
        "TRANS_B": int(b_transposed),
        "A_WIDTH": 4 if k % 4 == 0 else 1,
        "B_WIDTH": 4 if m % 4 == 0 else 1,
        "INNER": inner,
    }
    plan, sizes = choose(n, m, k, math.prod(batch)), (n, m, k, x_step, b_step)
    _product("matmul", (x, b), out, plan, sizes, defines, epilogue, (m // inner, inner))
    return out


def _matrices(a: Array, name: str, batch: Dims) -> tuple[Array, int, bool]:
    """(a contiguous, elements from one matrix to the next, whether its matrices lie transposed)"""
    lead, size = a.shape[:-2], math.prod(a.shape[-2:])
    transposed = not a.flags.c_contiguous and a.swapaxes(-1, -2).flags.c_contiguous
    if transposed:
        a = a.swapaxes(-1, -2)
    if lead != batch and math.prod(lead) != 1:
        a = xp_of(a).broadcast_to(a, (*batch, *a.shape[-2:]))
    (a,) = float32("matmul", **{name: a})
    return a, size if math.prod(lead) != 1 else 0, transposed


def conv2d(
    x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    epilogue: Epilogue | None = None,
) -> Array:  # fmt: skip
    x, w = float32("conv2d", x=x, w=w)
    expect("conv2d", "w", w, (len(w), x.shape[1] // groups, *w.shape[2:]))
    z = Geometry.of(x.shape, w.shape, stride, pad, dilation, groups)
    epilogue = (epilogue or Epilogue()).checked("conv2d", z.K)
    if z.is_dense:
        rows, taps = x.reshape(len(x), z.C * z.H * z.W), w.reshape(z.K, z.C * z.H * z.W)
        return _matmul(rows, taps.T, (), epilogue).reshape(len(x), z.K, 1, 1)
    y = empty(x, (len(x), z.K, z.P, z.Q))
    plan, channels = z.plan_forward(len(x)), (z.K, z.P * z.Q)
    _product("conv2d", (x, w), y, plan, (len(x),), asdict(z), epilogue, channels)
    return y


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    epilogue: Epilogue | None = None,
) -> Array:  # fmt: skip
    g, w = float32("conv2d_dgrad", g=g, w=w)
    n = len(g)
    shape = (n, w.shape[1] * groups, *size)
    z = Geometry.of(shape, w.shape, stride, pad, dilation, groups)
    expect("conv2d_dgrad", "g", g, (n, z.K, z.P, z.Q))
    epilogue = (epilogue or Epilogue()).checked("conv2d_dgrad", z.C)
    if z.is_dense:
        taps = w.reshape(z.K, z.C * z.H * z.W)
        return _matmul(g.reshape(n, z.K), taps, (), epilogue, z.H * z.W).reshape(shape)
    gx = empty(g, shape)
    if not z.prefers_col2im(n):
        plan, channels = z.plan_dgrad(n), (z.C, z.H * z.W)
        _product("conv2d_dgrad", (g, w), gx, plan, (n,), asdict(z), epilogue, channels)
        return gx
    cols = workspace(g, (n, z.C * z.R * z.S, z.P, z.Q))
    plan, defines = z.one_tap.plan_dgrad(n), asdict(z.one_tap)
    _product("conv2d_dgrad", (g, w), cols, plan, (n,), defines, Epilogue())
    col2im = specialised("col2im", **asdict(z), **epilogue.defines)
    launch(col2im, blocks(gx.size), (256,), (cols, epilogue.bias, gx, n))
    return gx


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    later: bool = False,
) -> Array | ChannelSum:  # fmt: skip
    x, g = float32("conv2d_wgrad", x=x, g=g)
    shape = (g.shape[1], x.shape[1] // groups, *taps)
    z = Geometry.of(x.shape, shape, stride, pad, dilation, groups)
    expect("conv2d_wgrad", "g", g, (len(x), z.K, z.P, z.Q))
    if z.is_dense:
        rows, images = g.reshape(len(x), z.K), x.reshape(len(x), z.C * z.H * z.W)
        return _matmul(rows.T, images, (), Epilogue()).reshape(shape)
    gw = empty(x, shape)
    plan, defines = z.plan_wgrad(len(x)), asdict(z)
    return _product("conv2d_wgrad", (x, g), gw, plan, (len(x),), defines, later=later)
