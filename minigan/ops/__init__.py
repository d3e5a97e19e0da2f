"""The ops: functions that take arrays or Tensors, each with the rules of its derivatives.

math.py  elementwise and reductions     shape.py  moving elements     linear.py  matrix products
conv.py  convolution, pooling, resizing norm.py   normalisation, bias + activation, dropout
arguments.py  what they check of axes and pairs of ints
"""

from __future__ import annotations

from typing import Any

from minigan.autograd import Tensor
from minigan.ops.conv import (
    avg_pool2d,
    conv2d,
    conv2d_dgrad,
    conv2d_wgrad,
    conv_transpose2d,
    max_pool2d,
    pad_images,
    resize,
    upsample_nearest,
)
from minigan.ops.linear import embedding, linear, matmul
from minigan.ops.math import (
    abs,
    add,
    astype,
    broadcast_to,
    clip,
    div,
    elu,
    exp,
    leaky_relu,
    log,
    log_sigmoid,
    log_softmax,
    max,
    maximum,
    mean,
    min,
    minimum,
    mul,
    neg,
    power,
    relu,
    sigmoid,
    sign,
    softplus,
    sqrt,
    sub,
    sum,
    tanh,
    var,
    where,
)
from minigan.ops.norm import (
    batch_norm,
    bias_act,
    dropout,
    instance_norm,
    layer_norm,
    pixel_norm,
)
from minigan.ops.shape import (
    concat,
    expand_dims,
    flatten,
    flip,
    getitem,
    pad,
    reshape,
    squeeze,
    stack,
    swapaxes,
    transpose,
)

__all__ = [
    "abs",
    "add",
    "astype",
    "avg_pool2d",
    "batch_norm",
    "bias_act",
    "broadcast_to",
    "clip",
    "concat",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "conv_transpose2d",
    "div",
    "dropout",
    "elu",
    "embedding",
    "exp",
    "expand_dims",
    "flatten",
    "flip",
    "getitem",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log",
    "log_sigmoid",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mul",
    "neg",
    "pad",
    "pad_images",
    "pixel_norm",
    "power",
    "relu",
    "reshape",
    "resize",
    "sigmoid",
    "sign",
    "softplus",
    "sqrt",
    "squeeze",
    "stack",
    "sub",
    "sum",
    "swapaxes",
    "tanh",
    "transpose",
    "upsample_nearest",
    "var",
    "where",
]


def _give_tensor_its_operators() -> None:
    def swapped(op: Any) -> Any:
        return lambda self, other: op(other, self)

    for name, op in {"add": add, "sub": sub, "mul": mul, "truediv": div, "matmul": matmul}.items():
        setattr(Tensor, f"__{name}__", lambda self, other, op=op: op(self, other))
        setattr(Tensor, f"__r{name}__", swapped(op))
    Tensor.__pow__ = lambda self, other: power(self, other)  # type: ignore[method-assign]
    Tensor.__rpow__ = swapped(power)  # type: ignore[method-assign]
    Tensor.__neg__ = lambda self: neg(self)  # type: ignore[method-assign]
    Tensor.__abs__ = lambda self: abs(self)  # type: ignore[method-assign]
    Tensor.__getitem__ = lambda self, index: getitem(self, index)  # type: ignore[method-assign]

    for name in ("lt", "le", "gt", "ge", "eq", "ne"):  # comparisons give arrays of bool

        def compare(self: Any, other: Any, method: str = f"__{name}__") -> Any:
            return getattr(self.data, method)(other.data if isinstance(other, Tensor) else other)

        setattr(Tensor, f"__{name}__", compare)

    methods = {
        "abs": abs, "clip": clip, "exp": exp, "flatten": flatten, "log": log, "max": max,
        "mean": mean, "min": min, "relu": relu, "reshape": reshape, "sigmoid": sigmoid,
        "sqrt": sqrt, "squeeze": squeeze, "swapaxes": swapaxes, "tanh": tanh,
        "transpose": transpose, "var": var, "view": reshape, "permute": transpose,
        "unsqueeze": expand_dims, "pow": power,
    }  # fmt: skip
    for name, method in methods.items():
        setattr(Tensor, name, lambda self, *a, op=method, **k: op(self, *a, **k))
    Tensor.sum = lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims)  # type: ignore[attr-defined]
    Tensor.max = lambda self, axis=None, keepdims=False: max(self, axis=axis, keepdims=keepdims)  # type: ignore[attr-defined]
    Tensor.clip = lambda self, low, high: clip(self, low=low, high=high)  # type: ignore[attr-defined]
    Tensor.astype = lambda self, dtype: astype(self, dtype=dtype)  # type: ignore[attr-defined]
    Tensor.T = property(lambda self: transpose(self))  # type: ignore[attr-defined]


_give_tensor_its_operators()
