"""The nets that both frameworks train: written once, with `nn` either's module of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A generator and discriminator, and how they are trained.

    image (C,H,W)   penalty: none or wgan-gp   classes: of labels that both nets are told, 0 if none
    """

    net: str
    batch: int
    image: tuple[int, int, int] = (1, 28, 28)
    penalty: str = "none"
    classes: int = 0


CASES = {
    "mnist-dcgan 64": Case("mnist_dcgan", 64),
    "mnist-dcgan 128": Case("mnist_dcgan", 128),
    "mnist-gan 64": Case("mnist_gan", 64),
    "mnist-cgan 64": Case("mnist_gan", 64, classes=10),
    "wgan-gp mnist-dcgan 64": Case("mnist_dcgan", 64, penalty="wgan-gp"),
    "dcgan 64x64 64": Case("dcgan", 64, (3, 64, 64)),
    "dcgan 128x128 16": Case("dcgan", 16, (3, 128, 128)),
}


def build(case: Case, nn: Any, view: Any) -> tuple[Any, Any]:
    """(generator, discriminator).   view(*shape): the layer (N,...) -> (N,*shape)"""
    return globals()[case.net](case, nn, view)


def mnist_gan(case: Case, nn: Any, view: Any) -> tuple[Any, Any]:
    generator = nn.Sequential(
        nn.Linear(100 + case.classes, 128), nn.LeakyReLU(0.01), nn.Linear(128, 784), nn.Tanh()
    )
    discriminator = nn.Sequential(
        nn.Linear(784 + case.classes, 128), nn.LeakyReLU(0.01), nn.Linear(128, 1), view()
    )
    return generator, discriminator


def mnist_dcgan(case: Case, nn: Any, view: Any) -> tuple[Any, Any]:
    def norm(channels: int) -> Any:
        return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)

    generator = nn.Sequential(
        view(100, 1, 1),
        nn.ConvTranspose2d(100, 64, 7), norm(64), nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), norm(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    # A critic under a gradient penalty has no batch norm: it ties the samples of a batch together.
    norms = [] if case.penalty == "wgan-gp" else [norm(64)]
    discriminator = nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.01),
        nn.Conv2d(32, 64, 4, 2, 1), *norms, nn.LeakyReLU(0.01),
        nn.Conv2d(64, 1, 7), view(),
    )  # fmt: skip
    return generator, discriminator


def dcgan(case: Case, nn: Any, view: Any) -> tuple[Any, Any]:
    """Radford et al. 2016: 512-256-128-64 channels at 64×64, one stage of 32 more at 128×128."""
    widths = [512, 256, 128, 64, 32][: case.image[1].bit_length() - 3]
    up: list[Any] = [view(100, 1, 1), nn.ConvTranspose2d(100, 512, 4, bias=False)]
    for wide, narrow in zip(widths, [*widths[1:], None], strict=True):
        up += [nn.BatchNorm2d(wide), nn.ReLU()]
        up.append(nn.ConvTranspose2d(wide, narrow or 3, 4, 2, 1, bias=narrow is None))
    down: list[Any] = [nn.Conv2d(3, widths[-1], 4, 2, 1), nn.LeakyReLU(0.2)]
    for narrow, wide in zip(widths[:0:-1], widths[-2::-1], strict=True):
        down += [
            nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)
        ]  # fmt: skip
    down += [nn.Conv2d(512, 1, 4), view()]
    return nn.Sequential(*up, nn.Tanh()), nn.Sequential(*down)
