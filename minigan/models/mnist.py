"""The three MNIST nets of ocaml-torch's GAN examples, as they are there but for two things: the
discriminators end in logits (their sigmoid is part of the loss), and take and give images.

z (N,latent_dim)   images (N,1,28,28)   labels (N,) of int   logits (N,)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigan import nn, ops
from minigan.array import xp_of
from minigan.autograd import Tensor

IMAGE = (1, 28, 28)


def gan(latent_dim: int, init: str) -> tuple[nn.Module, nn.Module]:
    """Multi-layer perceptrons: 114 064 + 100 609 parameters at latent_dim 100."""
    generator = nn.Sequential(
        nn.Linear(latent_dim, 128, init=init),
        nn.LeakyReLU(0.01),
        nn.Linear(128, 784, init=init),
        nn.Tanh(),
        nn.Reshape(*IMAGE),
    )
    discriminator = nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 128, init=init),
        nn.LeakyReLU(0.01),
        nn.Linear(128, 1, init=init),
        nn.Reshape(),
    )
    return generator, discriminator


def _batch_norm(channels: int) -> nn.Module:
    """No parameters, and the batch's statistics always, also when sampling."""
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


def dcgan(latent_dim: int, init: str) -> tuple[nn.Module, nn.Module]:
    """Convolutions, 1 → 7 → 14 → 28 and back: 346 977 + 36 513 parameters at latent_dim 100."""
    generator = nn.Sequential(
        nn.Reshape(latent_dim, 1, 1),
        nn.ConvTranspose2d(latent_dim, 64, 7, init=init),
        _batch_norm(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, init=init),
        _batch_norm(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1, init=init),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1, init=init),
        nn.LeakyReLU(0.01),
        nn.Conv2d(32, 64, 4, stride=2, padding=1, init=init),
        _batch_norm(64),
        nn.LeakyReLU(0.01),
        nn.Conv2d(64, 1, 7, init=init),
        nn.Reshape(),
    )
    return generator, discriminator


def _with_class(x: Any, labels: Any, classes: int) -> Any:
    """x (N,D) -> (N,D+classes): the label as a one-hot vector behind it."""
    xp = xp_of(x.data if isinstance(x, Tensor) else x)
    one_hot = (xp.asarray(labels)[:, None] == xp.arange(classes)).astype(np.float32)
    return ops.concat([x, one_hot], axis=1)


class ConditionalGenerator(nn.Module):
    """(z, labels) -> images"""

    def __init__(self, latent_dim: int, classes: int, init: str) -> None:
        self.classes = classes
        self.net = nn.Sequential(
            nn.Linear(latent_dim + classes, 128, init=init),
            nn.LeakyReLU(0.01),
            nn.Linear(128, 784, init=init),
            nn.Tanh(),
            nn.Reshape(*IMAGE),
        )

    def forward(self, z: Any, labels: Any) -> Any:
        return self.net(_with_class(z, labels, self.classes))


class ConditionalDiscriminator(nn.Module):
    """(images, labels) -> logits"""

    per_sample = True

    def __init__(self, classes: int, init: str) -> None:
        self.classes = classes
        self.net = nn.Sequential(
            nn.Linear(784 + classes, 128, init=init),
            nn.LeakyReLU(0.01),
            nn.Linear(128, 1, init=init),
            nn.Reshape(),
        )

    def forward(self, x: Any, labels: Any) -> Any:
        return self.net(_with_class(ops.flatten(x, 1), labels, self.classes))


def cgan(latent_dim: int, init: str) -> tuple[nn.Module, nn.Module]:
    """The label beside z and beside the image: 115 344 + 101 889 parameters at latent_dim 100."""
    return ConditionalGenerator(latent_dim, 10, init), ConditionalDiscriminator(10, init)
