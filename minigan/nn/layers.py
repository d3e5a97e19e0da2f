"""The layers: each its initial weights and one call of an op.

Weight shapes, argument order and names are PyTorch's. init: a scheme of minigan.nn.init or its
name; the weights are drawn from minigan.manual_seed's generator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigan import ops
from minigan.array import generator, xp_of
from minigan.autograd import array_of
from minigan.nn.init import Scheme, fan_in, scheme
from minigan.nn.module import Activation, Module, Parameter
from minigan.ops.arguments import pair

Size = int | tuple[int, int]


def _bias(size: int, init: Any, weight: Parameter) -> Parameter:
    stream = generator.stream("init")
    if init is None:
        bound = 1 / math.sqrt(fan_in(weight.shape))
        return Parameter(stream.uniform((size,), -bound, bound))
    return Parameter(init((size,), stream))


class Linear(Module):
    """y = x wᵀ + bias.   x (...,in_features) -> y (...,out_features);  weight (out,in)"""

    per_sample = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: str | Scheme = "pytorch",
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        s = scheme(init)
        self.weight = Parameter(s.linear((out_features, in_features), generator.stream("init")))
        self.bias = _bias(out_features, s.linear_bias, self.weight) if bias else None

    def forward(
        self, x: Any, weight: Any = None, *, act: str = "linear", slope: float = 0.01
    ) -> Any:
        w = self.weight if weight is None else weight
        return ops.linear(x, w, self.bias, act=act, slope=slope)

    def describe(self) -> str:
        return f"Linear({self.in_features} → {self.out_features})"


class _Conv(Module):
    """What both convolutions are but for the shape of their weight and their op."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Any = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        init: str | Scheme = "pytorch",
    ) -> None:
        name = type(self).__name__
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide {in_channels} and {out_channels} channels"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        taps, s = pair(f"{name}: kernel_size", kernel_size, 1), scheme(init)
        self.weight = Parameter(self._first_weight(taps, s))
        self.bias = _bias(out_channels, s.conv_bias, self.weight) if bias else None

    def _first_weight(self, taps: tuple[int, int], s: Scheme) -> np.ndarray:
        raise NotImplementedError

    def _op(self, x: Any, w: Any, **options: Any) -> Any:
        raise NotImplementedError

    def forward(
        self, x: Any, weight: Any = None, *, act: str = "linear", slope: float = 0.01
    ) -> Any:
        return self._op(
            x,
            self.weight if weight is None else weight,
            stride=self.stride,
            pad=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            act=act,
            slope=slope,
        )

    def describe(self) -> str:
        taps = "×".join(map(str, self.weight.shape[2:]))
        text = f"{self.in_channels} → {self.out_channels}, {taps}, stride {self.stride}"
        text += f", pad {self.padding}"
        text += f", groups {self.groups}" if self.groups != 1 else ""
        return f"{type(self).__name__}({text})"


class Conv2d(_Conv):
    """x (N,in,H,W) -> y (N,out,P,Q), P = (H + 2·padding - dilation·(R-1) - 1)//stride + 1

    weight (out,in/groups,R,S).   padding: int, (h, w) or ((top, bottom), (left, right)).
    """

    per_sample = True

    def _first_weight(self, taps: tuple[int, int], s: Scheme) -> np.ndarray:
        shape = (self.out_channels, self.in_channels // self.groups, *taps)
        return s.conv(shape, generator.stream("init"))

    def _op(self, x: Any, w: Any, **options: Any) -> Any:
        return ops.conv2d(x, w, self.bias, **options)


class ConvTranspose2d(_Conv):
    """x (N,in,H,W) -> y (N,out,P,Q),
    P = (H-1)·stride - 2·padding + dilation·(R-1) + output_padding + 1.   weight (in,out/groups,R,S)
    """

    per_sample = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Any = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        init: str | Scheme = "pytorch",
    ) -> None:
        self.output_padding = output_padding
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            init=init,
        )  # fmt: skip

    def _first_weight(self, taps: tuple[int, int], s: Scheme) -> np.ndarray:
        shape = (self.in_channels, self.out_channels // self.groups, *taps)
        return s.conv_transpose(shape, generator.stream("init"))

    def _op(self, x: Any, w: Any, **options: Any) -> Any:
        return ops.conv_transpose2d(x, w, self.bias, output_padding=self.output_padding, **options)


class Embedding(Module):
    """y = weight[labels].   labels (...) of int -> y (...,dim);  weight (classes,dim)"""

    def __init__(self, classes: int, dim: int, *, init: str | Scheme = "pytorch") -> None:
        self.classes, self.dim = classes, dim
        self.weight = Parameter(scheme(init).embedding((classes, dim), generator.stream("init")))

    def forward(self, labels: Any, weight: Any = None) -> Any:
        """Raises: ValueError for labels that no row has, if they are in host memory."""
        labels = array_of(labels)
        if xp_of(labels) is np:
            labels = self._checked(np.asarray(labels))
        return ops.embedding(labels, self.weight if weight is None else weight)

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{self.describe()}: labels must be ints, not {labels.dtype}")
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise ValueError(
                f"{self.describe()}: labels must be 0 to {self.classes - 1}, "
                f"not {labels.min()} to {labels.max()}"
            )
        return labels

    def describe(self) -> str:
        return f"Embedding({self.classes} → {self.dim})"


# ---------------------------------------------------------------------- activations, with no state


class ReLU(Activation):
    """max(x, 0)"""

    per_sample = True

    act = "relu"


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope · x. The default is PyTorch's; DCGAN's is 0.2."""

    per_sample = True

    act = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.slope = negative_slope

    def describe(self) -> str:
        return f"LeakyReLU({self.slope})"


class ELU(Module):
    """x where x > 0, else alpha · (e^x - 1)"""

    per_sample = True

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return ops.elu(x, alpha=self.alpha)


class Tanh(Activation):
    """tanh x, in (-1, 1)"""

    per_sample = True

    act = "tanh"


class Sigmoid(Activation):
    """1 / (1 + e^-x), in (0, 1)"""

    per_sample = True

    act = "sigmoid"


class Softplus(Module):
    """ln(1 + e^x)"""

    per_sample = True

    def forward(self, x: Any) -> Any:
        return ops.softplus(x)


# ------------------------------------------------------------------------------------------ shapes


class Identity(Module):
    """y = x"""

    per_sample = True

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """x (N,...) -> y (N,product of the rest)"""

    per_sample = True

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, 1)


class Reshape(Module):
    """x (N,...) -> y (N,*shape)"""

    per_sample = True

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        return ops.reshape(x, x.shape[0], *self.shape)

    def describe(self) -> str:
        return f"Reshape{self.shape}"


class Upsample(Module):
    """x (N,C,H,W) -> y (N,C,H·scale,W·scale).   mode: nearest or bilinear.

    scale_factor: int or (h, w). For other sizes there is ops.resize.
    """

    per_sample = True

    def __init__(
        self, scale_factor: Size = 2, mode: str = "nearest", align_corners: bool = False
    ) -> None:
        self.factors = pair("Upsample: scale_factor", scale_factor, 1)
        self.scale_factor, self.mode, self.align_corners = scale_factor, mode, align_corners

    def forward(self, x: Any) -> Any:
        size = (x.shape[2] * self.factors[0], x.shape[3] * self.factors[1])
        return ops.resize(x, size, self.mode, self.align_corners)

    def describe(self) -> str:
        return f"Upsample({self.scale_factor}, {self.mode})"


class AvgPool2d(Module):
    """The mean of each window; zeros of the padding count."""

    per_sample = True

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Any:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding)

    def describe(self) -> str:
        return f"AvgPool2d({self.kernel_size})"


class MaxPool2d(Module):
    """The maximum of each window."""

    per_sample = True

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Any:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def describe(self) -> str:
        return f"MaxPool2d({self.kernel_size})"


class ReflectionPad2d(Module):
    """Images padded with their mirror image."""

    per_sample = True

    def __init__(self, padding: Any) -> None:
        self.padding = padding

    def forward(self, x: Any) -> Any:
        return ops.pad_images(x, self.padding, "reflect")

    def describe(self) -> str:
        return f"ReflectionPad2d({self.padding})"


class Dropout(Module):
    """In training, zero with probability p, else x / (1 - p).   Srivastava et al. 2014."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), not {p}")
        self.p = p

    def forward(self, x: Any) -> Any:
        return ops.dropout(x, self.p) if self.training else x

    def describe(self) -> str:
        return f"Dropout({self.p})"
