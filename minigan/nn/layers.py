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
from minigan.autograd import Tensor
from minigan.nn.init import Scheme, fan_in, scheme
from minigan.nn.module import Activation, Module, Parameter

Size = int | tuple[int, int]


def _pair(v: Any) -> tuple[int, int]:
    return (v, v) if isinstance(v, int) else (v[0], v[1])


def _bias(size: int, init: Any, weight: Parameter) -> Parameter:
    stream = generator.stream("init")
    if init is None:
        bound = 1 / math.sqrt(fan_in(weight.shape))
        return Parameter(stream.uniform((size,), -bound, bound))
    return Parameter(init((size,), stream))


class Linear(Module):
    """y = x wᵀ + bias.   x (...,in_features) -> y (...,out_features);  weight (out,in)"""

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


class Conv2d(Module):
    """x (N,in,H,W) -> y (N,out,P,Q), P = (H + 2·padding - dilation·(R-1) - 1)//stride + 1

    weight (out,in/groups,R,S).   padding: int, (h, w) or ((top, bottom), (left, right)).
    """

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
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups={groups} must divide {in_channels} and {out_channels} channels"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        s = scheme(init)
        shape = (out_channels, in_channels // groups, *_pair(kernel_size))
        self.weight = Parameter(s.conv(shape, generator.stream("init")))
        self.bias = _bias(out_channels, s.conv_bias, self.weight) if bias else None

    def forward(
        self, x: Any, weight: Any = None, *, act: str = "linear", slope: float = 0.01
    ) -> Any:
        return ops.conv2d(
            x,
            self.weight if weight is None else weight,
            self.bias,
            stride=self.stride,
            pad=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            act=act,
            slope=slope,
        )

    def describe(self) -> str:
        return f"Conv2d({_geometry(self)})"


class ConvTranspose2d(Module):
    """x (N,in,H,W) -> y (N,out,P,Q),
    P = (H-1)·stride - 2·padding + dilation·(R-1) + output_padding + 1.   weight (in,out/groups,R,S)
    """

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
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"ConvTranspose2d: groups={groups} must divide {in_channels} and {out_channels} "
                "channels"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.output_padding = output_padding
        s = scheme(init)
        shape = (in_channels, out_channels // groups, *_pair(kernel_size))
        self.weight = Parameter(s.conv_transpose(shape, generator.stream("init")))
        self.bias = _bias(out_channels, s.conv_bias, self.weight) if bias else None

    def forward(
        self, x: Any, weight: Any = None, *, act: str = "linear", slope: float = 0.01
    ) -> Any:
        return ops.conv_transpose2d(
            x,
            self.weight if weight is None else weight,
            self.bias,
            stride=self.stride,
            pad=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
            act=act,
            slope=slope,
        )

    def describe(self) -> str:
        return f"ConvTranspose2d({_geometry(self)})"


def _geometry(layer: Any) -> str:
    taps = "×".join(map(str, layer.weight.shape[2:]))
    text = f"{layer.in_channels} → {layer.out_channels}, {taps}, stride {layer.stride}"
    text += f", pad {layer.padding}"
    return text + (f", groups {layer.groups}" if layer.groups != 1 else "")


class Embedding(Module):
    """y = weight[labels].   labels (...) of int -> y (...,dim);  weight (classes,dim)"""

    def __init__(self, classes: int, dim: int, *, init: str | Scheme = "pytorch") -> None:
        self.classes, self.dim = classes, dim
        self.weight = Parameter(scheme(init).embedding((classes, dim), generator.stream("init")))

    def forward(self, labels: Any) -> Any:
        return ops.embedding(labels, self.weight)

    def describe(self) -> str:
        return f"Embedding({self.classes} → {self.dim})"


# ---------------------------------------------------------------------------------- normalisation


class _BatchNorm(Module):
    """y = weight · (x - mean) / sqrt(var + eps) + bias, per channel.   Ioffe & Szegedy 2015.

    Training: mean and biased var of the batch; running averages take the batch's mean and unbiased
    var, running = (1 - momentum) · running + momentum · batch. Evaluation: the running averages.
    track_running_stats=False: no averages are kept, and the batch's statistics are used always, in
    evaluation too (a sample then depends on the batch that it is in).

    eps, momentum: keyword-only, since the two are often mistaken for each other.
    """

    axes: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        init: str | Scheme = "pytorch",
    ) -> None:
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = self.bias = self.running_mean = self.running_var = None
        self.num_batches_tracked = None
        if affine:
            self.weight = Parameter(scheme(init).norm((num_features,), generator.stream("init")))
            self.bias = Parameter(np.zeros(num_features, np.float32))
        if track_running_stats:
            self.running_mean = Tensor(np.zeros(num_features, np.float32))
            self.running_var = Tensor(np.ones(num_features, np.float32))
            self.num_batches_tracked = Tensor(np.zeros((), np.int64))

    def _update(self, x: Any) -> Any:
        """What batch_norm calls with the batch's statistics."""
        mean_average, var_average = self.running_mean, self.running_var
        if mean_average is None or var_average is None or self.num_batches_tracked is None:
            return None
        m = x.size // x.shape[1]
        tracked = self.num_batches_tracked

        def update(mean: Any, rstd: Any) -> None:
            var = (rstd**-2 - self.eps) * (m / (m - 1))
            mean_average.data += self.momentum * (mean - mean_average.data)
            var_average.data += self.momentum * (var - var_average.data)
            tracked.data += 1

        return update

    def forward(self, x: Any, *, act: str = "linear", slope: float = 0.01) -> Any:
        if x.ndim not in self.axes or x.shape[1] != self.num_features:
            raise ValueError(f"{self.describe()}: cannot take x of shape {tuple(x.shape)}")
        if self.training or self.running_mean is None or self.running_var is None:
            stats = self._update(x) if self.training else None
            return ops.batch_norm(
                x, self.weight, self.bias, eps=self.eps, act=act, slope=slope, stats=stats
            )
        xp = xp_of(self.running_var.data)
        scale = 1 / xp.sqrt(self.running_var.data + np.float32(self.eps))
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x - self.running_mean.data.reshape(shape)) * scale.reshape(shape)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return ops.bias_act(y, act=act, slope=slope)

    def describe(self) -> str:
        plain = "" if self.weight is not None else ", affine=False"
        batch = "" if self.running_mean is not None else ", batch statistics"
        return f"{type(self).__name__}({self.num_features}{plain}{batch})"


class BatchNorm1d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    axes = (2, 3)


class BatchNorm2d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    axes = (4,)


class InstanceNorm2d(Module):
    """Each image's channel normalised over its own H and W.   Ulyanov et al. 2016."""

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = False,
        init: str | Scheme = "pytorch",
    ) -> None:
        self.num_features, self.eps = num_features, eps
        self.weight = self.bias = None
        if affine:
            self.weight = Parameter(scheme(init).norm((num_features,), generator.stream("init")))
            self.bias = Parameter(np.zeros(num_features, np.float32))

    def forward(self, x: Any) -> Any:
        return ops.instance_norm(x, self.weight, self.bias, eps=self.eps)

    def describe(self) -> str:
        return f"InstanceNorm2d({self.num_features})"


class LayerNorm(Module):
    """Normalised over the last axes, of shape `shape`.   Ba et al. 2016."""

    def __init__(
        self, shape: int | tuple[int, ...], *, eps: float = 1e-5, affine: bool = True
    ) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.weight = Parameter(np.ones(self.shape, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(self.shape, np.float32)) if affine else None

    def forward(self, x: Any) -> Any:
        return ops.layer_norm(x, self.shape, self.weight, self.bias, eps=self.eps)

    def describe(self) -> str:
        return f"LayerNorm({self.shape})"


class PixelNorm(Module):
    """y = x / sqrt(mean_c x² + eps).   Karras et al. 2018, section 4.2."""

    def __init__(self, *, eps: float = 1e-8) -> None:
        self.eps = eps

    def forward(self, x: Any) -> Any:
        return ops.pixel_norm(x, eps=self.eps)


# ---------------------------------------------------------------------- activations, with no state


class ReLU(Activation):
    """max(x, 0)"""

    act = "relu"


class LeakyReLU(Activation):
    """x where x > 0, else negative_slope · x. The default is PyTorch's; DCGAN's is 0.2."""

    act = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.slope = negative_slope

    def describe(self) -> str:
        return f"LeakyReLU({self.slope})"


class ELU(Module):
    """x where x > 0, else alpha · (e^x - 1)"""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return ops.elu(x, alpha=self.alpha)


class Tanh(Activation):
    """tanh x, in (-1, 1)"""

    act = "tanh"


class Sigmoid(Activation):
    """1 / (1 + e^-x), in (0, 1)"""

    act = "sigmoid"


class Softplus(Module):
    """ln(1 + e^x)"""

    def forward(self, x: Any) -> Any:
        return ops.softplus(x)


# ------------------------------------------------------------------------------------------ shapes


class Identity(Module):
    """y = x"""

    def forward(self, x: Any) -> Any:
        return x


class Flatten(Module):
    """x (N,...) -> y (N,product of the rest)"""

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, 1)


class Reshape(Module):
    """x (N,...) -> y (N,*shape)"""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def forward(self, x: Any) -> Any:
        return ops.reshape(x, x.shape[0], *self.shape)

    def describe(self) -> str:
        return f"Reshape{self.shape}"


class Upsample(Module):
    """x (N,C,H,W) -> y (N,C,H·scale,W·scale).   mode: nearest or bilinear."""

    def __init__(
        self, scale_factor: int = 2, mode: str = "nearest", align_corners: bool = False
    ) -> None:
        self.scale_factor, self.mode, self.align_corners = scale_factor, mode, align_corners

    def forward(self, x: Any) -> Any:
        size = (x.shape[2] * self.scale_factor, x.shape[3] * self.scale_factor)
        return ops.resize(x, size, self.mode, self.align_corners)

    def describe(self) -> str:
        return f"Upsample({self.scale_factor}, {self.mode})"


class AvgPool2d(Module):
    """The mean of each window; zeros of the padding count."""

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Any:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding)

    def describe(self) -> str:
        return f"AvgPool2d({self.kernel_size})"


class MaxPool2d(Module):
    """The maximum of each window."""

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any) -> Any:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding)

    def describe(self) -> str:
        return f"MaxPool2d({self.kernel_size})"


class ReflectionPad2d(Module):
    """Images padded with their mirror image."""

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
