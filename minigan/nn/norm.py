"""The layers that normalise. Names and arguments are PyTorch's; init: see layers.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigan import kernels, ops
from minigan.array import generator, xp_of
from minigan.autograd import Tensor
from minigan.nn.init import Scheme, scheme
from minigan.nn.module import Module, Parameter


class _BatchNorm(Module):
    """y = weight · (x - mean) / sqrt(var + eps) + bias, per channel.   Ioffe & Szegedy 2015.

    Training: mean and biased var of the batch; running averages take the batch's mean and unbiased
    var, running = (1 - momentum) · running + momentum · batch. Evaluation: the running averages.
    momentum=None: the mean of all batches, each with the weight 1 / num_batches_tracked.
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
        momentum: float | None = 0.1,
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
        averages = mean_average.data, var_average.data, self.num_batches_tracked.data
        m = x.size // x.shape[1]

        def update(mean: Any, rstd: Any) -> None:
            kernels.batch_norm_averages(mean, rstd, *averages, self.momentum, self.eps, m)

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

    per_sample = True

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

    per_sample = True

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

    per_sample = True

    def __init__(self, *, eps: float = 1e-8) -> None:
        self.eps = eps

    def forward(self, x: Any) -> Any:
        return ops.pixel_norm(x, eps=self.eps)
