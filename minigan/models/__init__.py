"""Network families, one a file, and the table of them that recipes name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from minigan.models import mnist
from minigan.nn import Module


@dataclass(frozen=True)
class Family:
    """A pair of networks that play against each other.

    build: (latent_dim, init scheme) -> (generator, discriminator)
    image: (C,H,W) that they make and take, with values in value_range.   classes: of labels that
    both take, 0 for none.
    """

    build: Callable[[int, str], tuple[Module, Module]]
    image: tuple[int, int, int]
    classes: int = 0
    value_range: tuple[float, float] = (-1.0, 1.0)


FAMILIES = {
    "mnist-gan": Family(mnist.gan, mnist.IMAGE),
    "mnist-dcgan": Family(mnist.dcgan, mnist.IMAGE),
    "mnist-cgan": Family(mnist.cgan, mnist.IMAGE, classes=10),
}

__all__ = ["FAMILIES", "Family"]
