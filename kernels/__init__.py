"""The kernels' contract and the choice of who runs them; see README.md beside this file.

reference.py says what each function computes. The arrays say where it runs:

    CuPy arrays                          kernels/*.cu through CuPy on the GPU        (cuda.py)
    NumPy arrays                         loops that Numba compiles                   (cpu.py)
    NumPy arrays inside `use("sim")`     kernels/*.cu on the SIMT interpreter        (cuda.py)
    NumPy arrays inside `use("reference")`  the contract itself                      (reference.py)

Nothing outside this package knows which one ran, and none stands in for another: a backend that
cannot do what it is asked says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from minigan.array import xp_of
from minigan.kernels.reference import ChannelSum, Pads, Pair, aligned_starts, conv_out_size

__all__ = [
    "PARTS",
    "ChannelSum",
    "adam",
    "add",
    "aligned_starts",
    "average",
    "batch_norm",
    "batch_norm_averages",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "bce_with_logits",
    "bias_act",
    "bias_act_backward",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "conv_out_size",
    "costly_launches",
    "logistic_d",
    "logit_figures",
    "matmul",
    "pack",
    "scale",
    "squares",
    "times",
    "totals",
    "unit",
    "use",
    "warm_up",
]

_MODULES = {"cpu": "cpu", "sim": "cuda", "cuda": "cuda", "reference": "reference"}
_ON_GPU = ("cuda", "sim")
_host = "cpu"


def backend(x: Any) -> str:
    """The name of the backend that runs kernels on the array x."""
    if type(x) is np.ndarray:
        return _host
    x = x.g if isinstance(x, ChannelSum) else x
    return _host if xp_of(x) is np else "cuda"


@cache
def _load(name: str) -> Any:
    return importlib.import_module(f"minigan.kernels.{_MODULES[name]}")


def _module(x: Any) -> Any:
    return _load(backend(x))


def _simple(x: Any) -> Any:
    """The module for what NumPy does well enough by itself."""
    return _load(name if (name := backend(x)) in _ON_GPU else "reference")


def set_host(name: str) -> None:
    """Have NumPy arrays run on `name`: cpu, sim or reference. Sim's checks are off: see `use`."""
    global _host
    if name not in ("cpu", "sim", "reference"):
        raise ValueError(f"kernels: NumPy arrays run on cpu, sim or reference, not {name!r}")
    if name == "sim":
        _load("sim").set_checks(False)
    _host = name


@contextmanager
def use(name: str, checks: bool = True) -> Iterator[None]:
    """Context manager: NumPy arrays run on `name`, cpu, sim or reference, inside.

    checks: whether sim looks for races, stray accesses and the like, at three times the cost.
    """
    global _host
    previous = _host
    set_host(name)
    checked = _load("sim").set_checks(checks) if name == "sim" else True
    try:
        yield
    finally:
        _host = previous
        if name == "sim":
            _load("sim").set_checks(checked)


def warm_up(
    steps: Callable[[], None] | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Make the kernels of NumPy arrays ready, which takes seconds when they were never compiled.

    steps: does what will need them; it is called with nothing computed inside. By default all are
    made ready.   progress: called with (those that are ready, all of them) after each.
    What needs no compiling, and what runs without this call, is ready at once or when first used.
    """
    if _host != "cpu":
        return
    from minigan.kernels import loading, threads

    if steps is None or not loading.load():
        loading.warm_up(None, progress)
        return
    with threads.planning() as needed, np.errstate(all="ignore"):
        steps()
    loading.warm_up(needed, progress)


# ---- Products: act(product + bias[channel]), the bias optional -----------------------------------


def _finished(op: str, x: Any, args: tuple[Any, ...], bias: Any, act: str, slope: float) -> Any:
    name = backend(x)
    module = _load(name)
    if bias is None and act == "linear":
        return getattr(module, op)(*args)
    if name in _ON_GPU:  # in the launch that computes the product
        return getattr(module, op)(*args, module.Epilogue(bias, act, slope))
    if name == "cpu":
        return getattr(module, op)(*args, bias, act, slope)
    return module.bias_act(getattr(module, op)(*args), bias, act, slope)


def conv2d(
    x: Any, w: Any, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Any = None, act: str = "linear", slope: float = 0.0,
) -> Any:  # fmt: skip
    return _finished("conv2d", x, (x, w, stride, pad, dilation, groups), bias, act, slope)


def conv2d_dgrad(
    g: Any, w: Any, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Any = None, act: str = "linear", slope: float = 0.0,
) -> Any:  # fmt: skip
    args = (g, w, size, stride, pad, dilation, groups)
    return _finished("conv2d_dgrad", g, args, bias, act, slope)


def conv2d_wgrad(
    x: Any, g: Any, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    later: bool = False,
) -> Any:  # fmt: skip
    """later: it may be a ChannelSum, for `totals` to take."""
    if later and backend(x) in _ON_GPU:
        return _module(x).conv2d_wgrad(x, g, taps, stride, pad, dilation, groups, later=True)
    return _module(x).conv2d_wgrad(x, g, taps, stride, pad, dilation, groups)


def matmul(x: Any, b: Any, bias: Any = None, act: str = "linear", slope: float = 0.0) -> Any:
    if backend(x) in _ON_GPU:
        return _module(x).matmul(x, b, bias, act, slope)
    return _finished("matmul", x, (x, b), bias, act, slope)


# ---- Channels -----------------------------------------------------------------------------------


def bias_act(x: Any, bias: Any, act: str, slope: float) -> Any:
    return _module(x).bias_act(x, bias, act, slope)


def bias_act_backward(
    g: Any, y: Any, act: str, slope: float, with_bias: bool = True
) -> tuple[Any, Any]:
    """with_bias: whether gbias is wanted; what is returned in its place may be anything.

    gbias may be a ChannelSum, for `totals` to take.
    """
    if not with_bias and act == "linear":
        return g, None
    if backend(g) in _ON_GPU:
        return _module(g).bias_act_backward_later(g, y, act, slope, with_bias)
    return _module(g).bias_act_backward(g, y, act, slope)


def batch_norm(
    x: Any, weight: Any, bias: Any, eps: float, act: str, slope: float
) -> tuple[Any, Any, Any]:
    return _module(x).batch_norm(x, weight, bias, eps, act, slope)


def batch_norm_averages(
    mean: Any, rstd: Any, running_mean: Any, running_var: Any, batches: Any,
    momentum: float | None, eps: float, m: int,
) -> None:  # fmt: skip
    args = (mean, rstd, running_mean, running_var, batches, momentum, eps, m)
    _simple(mean).batch_norm_averages(*args)


def batch_norm_backward(
    g: Any, x: Any, y: Any, weight: Any, mean: Any, rstd: Any, act: str, slope: float
) -> tuple[Any, Any, Any]:
    return _module(g).batch_norm_backward(g, x, y, weight, mean, rstd, act, slope)


def batch_norm_double_backward(
    ggx: Any, g: Any, x: Any, y: Any, weight: Any, mean: Any, rstd: Any, gweight: Any, gbias: Any,
    act: str, slope: float,
) -> tuple[Any, Any, Any]:  # fmt: skip
    return _module(g).batch_norm_double_backward(
        ggx, g, x, y, weight, mean, rstd, gweight, gbias, act, slope
    )


def adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    _module(p).adam(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step)


# ---- Logits and flat buffers --------------------------------------------------------------------


def bce_with_logits(x: Any, target: float) -> tuple[Any, Any]:
    return _module(x).bce_with_logits(x, target)


def logistic_d(real: Any, fake: Any, target: float) -> tuple[Any, Any]:
    return _module(real).logistic_d(real, fake, target)


def logit_figures(real: Any, fake: Any) -> Any:
    return _module(real).logit_figures(real, fake)


def pack(rows: Sequence[Sequence[Any]], starts: Sequence[int], flat: Any) -> None:
    """flat[start : start + size] = Σ of a row's arrays and ChannelSums, for each row and start."""
    _simple(flat).pack(rows, starts, flat)


PARTS = 4  # the most that a row of pack or totals may have


def totals(rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Σ of each row's arrays and ChannelSums; on a GPU one launch for eight rows."""
    return _simple(rows[0][0]).totals(rows) if rows else []


def costly_launches(a: Any) -> bool:
    """Whether a kernel on an array like a costs more than what it does to a small one: on a GPU.

    There float32 gradients that meet at a parameter wait for `totals`, and an optimizer takes all
    parameters at once; in host memory each is added, and updated, as it comes.
    """
    return backend(a) in _ON_GPU


def average(a: Any, p: Any, blend: float) -> None:
    _simple(a).average(a, p, blend)


_constants: dict[Any, Any] = {}  # for good: captured graphs read them
_MOST_CONSTANTS = 256  # and factors that a schedule changes would be ever more
_units: list[Any] = []


def _constant(like: Any, value: float) -> Any:
    """An array of like's kind and shape, filled once. Not to be changed."""
    xp = xp_of(like)
    key = type(like), like.dtype, like.shape, None if xp is np else like.device.id, value
    if key not in _constants:
        _constants[key] = xp.full(like.shape, value, like.dtype)
    return _constants[key]


def unit(like: Any) -> Any:
    """Ones, the gradient of a loss by itself. Not to be changed: they are made once, for `scale`
    and `times` to know them, and to compute nothing."""
    one = _constant(like, 1.0)
    if not any(one is u for u in _units):
        _units.append(one)
    return one


def times(g: Any, factor: float) -> Any:
    """g · factor"""
    if len(_constants) < _MOST_CONSTANTS and any(g is u for u in _units):
        return _constant(g, factor)
    return g * factor


def scale(x: Any, s: Any) -> Any:
    """s · x, s without axes; x itself if s is a `unit`."""
    if any(s is u for u in _units):
        return x
    return _simple(x).scale(x, s)


def squares(x: Any, scale: float) -> tuple[Any, Any]:
    """(scale · Σ x², its gradient)"""
    return _simple(x).squares(x, scale)


def add(a: Any, b: Any, out: Any = None, factor: float = 1.0) -> Any:
    """a + factor · b of arrays of any dtype, into out if it is given: how gradients that meet are
    summed."""
    if backend(a) in _ON_GPU and a.dtype == b.dtype == np.float32 and a.shape == b.shape:
        return _module(a).add(a, b, out, factor)
    return xp_of(a, b).add(a, b if factor == 1 else b * factor, out=out)
