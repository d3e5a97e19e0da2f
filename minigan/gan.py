"""The two-player game: what one update of the discriminator, and of the generator, computes.

    discriminator   sees a real batch x and fakes G(z), and descends loss_D. In separate passes, as
                    batch norm must not mix them; on a CPU in one, where no layer mixes samples
    generator       descends loss_G through the frozen discriminator

Nothing here keeps state: networks, batches and random numbers come from the caller.
x (N,C,H,W)   z (N,latent_dim)   labels (N,) of int, or None where the networks take none
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigan import kernels, losses
from minigan.array import Array, Stream, xp_of
from minigan.autograd import Tensor, grad, recorded
from minigan.flat import laid_out, lay_out
from minigan.kernels.threads import one_blas_thread
from minigan.losses import LOSSES, GanLoss
from minigan.nn import Module
from minigan.nn.module import per_sample


@dataclass
class Turn:
    """What one player's update computed.

    loss: an array without axes.   grads: by each parameter of the player, None for frozen ones.
    figures: to log; vectors, under the names of their elements.
    """

    loss: Array
    grads: list[Array | None]
    figures: dict[Names, Array]

    @property
    def metrics(self) -> dict[str, Array]:
        """The figures apart: arrays without axes."""
        return {name: v[i] for names, v in self.figures.items() for i, name in enumerate(names)}


Names = tuple[str, ...]
_ON_LOGITS = (
    "d_real", "d_fake", "accuracy_real", "accuracy_fake", "logit_real", "logit_fake"
)  # of kernels.logit_figures  # fmt: skip


PENALTIES = ("none", "wgan-gp", "r1", "r2", "dragan")


def _call(net: Module, x: Any, labels: Any) -> Any:
    return net(x) if labels is None else net(x, labels)


def _joined(x: Array, y: Array) -> Array:
    """Two batches end to end, channels last in memory."""
    if x.ndim < 3:
        return np.concatenate([x, y])
    return np.moveaxis(np.concatenate([np.moveaxis(a, 1, -1) for a in (x, y)]), -1, 1)


def generate(generator: Module, z: Array, labels: Array | None = None) -> Array:
    """Samples, recorded nowhere."""
    return recorded(False, _call, generator, Tensor(z), labels).data


def _grads(loss: Any, net: Module) -> list[Array | None]:
    """dL/dp of each parameter; None for those that the user has frozen."""
    params = net.parameters()
    each = iter(grad(loss, [p for p in params if p.requires_grad], kernels.unit(loss.data)))
    return [next(each).data if p.requires_grad else None for p in params]


@dataclass
class Game:
    """Two networks and the rules they play by.

    loss: see losses.LOSSES.   real_target: below 1 is one-sided label smoothing.
    penalty: none, wgan-gp, r1, r2 or dragan, times penalty_weight.
    """

    generator: Module
    discriminator: Module
    loss: GanLoss = LOSSES["non-saturating"]
    real_target: float = 1.0
    penalty: str = "none"
    penalty_weight: float = 10.0
    _frozen: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, not {self.penalty!r}")

    @one_blas_thread
    def discriminator_turn(
        self,
        x: Array,
        z: Array,
        labels: Array | None = None,
        fake_labels: Array | None = None,
        penalty_factor: float = 1.0,
        stream: Stream | None = None,
    ) -> Turn:
        """The discriminator's loss on x and G(z).

        penalty_factor: times the penalty; 0 leaves it out (in lazy regularisation).
        stream: of the penalty's random numbers.
        """
        self._thaw()
        fake = generate(self.generator, z, fake_labels)
        on_real, on_fake = self._judge(x, fake, labels, fake_labels)
        loss = self.loss.discriminator(on_real, on_fake, self.real_target)
        figures: dict[Names, Array] = {("d_loss",): loss.data.reshape(1)}
        if self.penalty != "none" and penalty_factor:
            penalty = self._penalty(x, fake, labels, fake_labels, stream)
            figures[("penalty",)] = penalty.data.reshape(1)
            loss = losses.plus(loss, penalty, factor=float(penalty_factor))
        figures[_ON_LOGITS] = kernels.logit_figures(on_real.data, on_fake.data)
        return Turn(loss.data, _grads(loss, self.discriminator), figures)

    def _judge(self, x: Array, fake: Array, labels: Any, fake_labels: Any) -> tuple[Any, Any]:
        """The discriminator's logits on x and on fake."""
        net = self.discriminator
        alike = x.shape[1:] == fake.shape[1:] and (labels is None) == (fake_labels is None)
        if not alike or kernels.backend(x) != "cpu" or not per_sample(net):
            return _call(net, Tensor(x), labels), _call(net, Tensor(fake), fake_labels)
        told = None if labels is None else np.concatenate([labels, fake_labels])
        both = _call(net, Tensor(_joined(x, fake)), told)
        return both[: len(x)], both[len(x) :]

    @one_blas_thread
    def generator_turn(
        self,
        z: Array,
        x: Array | None = None,
        labels: Array | None = None,
        fake_labels: Array | None = None,
    ) -> Turn:
        """The generator's loss on G(z).   x: a real batch, which relativistic losses need."""
        self._thaw()
        self._frozen = [p for p in self.discriminator.parameters() if p.requires_grad]
        try:
            for p in self._frozen:
                p.requires_grad = False
            on_fake = _call(
                self.discriminator, _call(self.generator, Tensor(z), fake_labels), fake_labels
            )
            on_real = None
            if x is not None:
                on_real = _call(self.discriminator, Tensor(x), labels)
            loss = self.loss.generator(on_fake, on_real)
            grads = _grads(loss, self.generator)
        finally:
            self._thaw()
        figures: dict[Names, Array] = {("g_loss",): loss.data.reshape(1)}
        return Turn(loss.data, grads, figures)

    def _thaw(self) -> None:
        """End what generator_turn has frozen; what an interrupt leaves, the next turn thaws."""
        while self._frozen:
            self._frozen[-1].requires_grad = True
            self._frozen.pop()

    def _penalty(self, x: Array, fake: Array, labels: Any, fake_labels: Any, stream: Any) -> Any:
        def on(images: Any) -> Any:
            return _call(self.discriminator, images, labels)

        if self.penalty == "wgan-gp":
            return losses.wgan_gp(on, x, fake, stream, weight=self.penalty_weight)
        if self.penalty == "dragan":
            return losses.dragan(on, x, stream, weight=self.penalty_weight)
        if self.penalty == "r1":
            return losses.r1(on, x, self.penalty_weight)
        return losses.r2(
            lambda images: _call(self.discriminator, images, fake_labels), fake, self.penalty_weight
        )


class Average:
    """The exponential moving average of a network's weights; buffers are copied as they are.

    average = d · average + (1 - d) · weight, d = min(decay, (1 + t) / (10 + t)) after t updates,
    so that the first weights, which are noise, are soon forgotten.   Yazıcı et al. 2019; the ramp
    is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay
        lay_out(self.net.parameters())

    def update(self, net: Module, step: int) -> None:
        """Move towards the weights that `net` has after `step` updates."""
        blend = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, its = ([p.data for p in n.parameters()] for n in (self.net, net))
        whole = laid_out(mine), laid_out(its)
        if whole[0] is not None and whole[1] is not None:
            kernels.average(*whole, blend)
        else:
            for a, p in zip(mine, its, strict=True):
                kernels.average(a, p, blend)
        for (_, b), (_, its_b) in zip(self.net.named_buffers(), net.named_buffers(), strict=True):
            b.data[...] = its_b.data


def all_finite(arrays: Iterable[Array | None]) -> bool:
    """Whether no array holds a NaN or an infinity: their sums are finite only then, or overflow."""
    for a in arrays:
        if a is None:
            continue
        xp = xp_of(a)
        if not xp.isfinite(a.sum()) and not xp.isfinite(a).all():
            return False
    return True
