"""The recipes on handwritten digits. Each has the source's own numbers as `ocaml-torch`, and a
`default` chosen by looking at samples: the best digits for a few minutes of CPU."""

from __future__ import annotations

from dataclasses import replace

from minigan.recipes.recipe import Recipe

# ocaml-torch's mnist_gan.ml and mnist_dcgan.ml; its 10^8 batches are "until killed".
_OCAML = Recipe(
    batch=128,
    steps=100_000,
    latent="uniform",
    init="ocaml-torch",
    loss="bce-eps",
    real_target=0.9,
    lr_g=1e-4,
    lr_d=1e-4,
    beta1=0.9,
    log_every=100,
    sample_every=5000,
    checkpoint_every=5000,
)

_GAN = "multi-layer perceptrons"
_DCGAN = "convolutions; the one to start with"
_CGAN = "perceptrons that are told the digit; sample with --label"

RECIPES = {
    "mnist-gan": {
        "default": Recipe(net="mnist-gan", about=_GAN, steps=10_000, ema=0.999),
        "ocaml-torch": replace(_OCAML, net="mnist-gan", about=_GAN, sample_every=25_000),
    },
    "mnist-dcgan": {
        "default": Recipe(net="mnist-dcgan", about=_DCGAN, steps=2500, ema=0.99),
        "ocaml-torch": replace(_OCAML, net="mnist-dcgan", about=_DCGAN),
    },
    "mnist-cgan": {
        "default": Recipe(net="mnist-cgan", about=_CGAN, steps=10_000, ema=0.999),
        "ocaml-torch": replace(
            _OCAML, net="mnist-cgan", about=_CGAN, batch=256, fake_labels="constant"
        ),
    },
}
