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

# R1, a gradient penalty on real digits, gave better digits for the same minutes than any setting
# tried without it; the rates fall to 0, and samples come from the average of the weights.
_DEFAULT = Recipe(
    lr_g=1e-3,
    lr_d=1e-3,
    decay="linear",
    penalty="r1",
    penalty_weight=1.0,
    ema=0.998,
)
_PERCEPTRONS = replace(
    _DEFAULT,
    steps=30_000,
    lr_d=2e-3,
    ema=0.999,
    log_every=500,
    sample_every=3000,
    checkpoint_every=3000,
)

_GAN = "multi-layer perceptrons"
_DCGAN = "convolutions; the one to start with"
_CGAN = "perceptrons that are told the digit; sample with --label"

RECIPES = {
    "mnist-gan": {
        "default": replace(_PERCEPTRONS, net="mnist-gan", about=_GAN),
        "ocaml-torch": replace(_OCAML, net="mnist-gan", about=_GAN, sample_every=25_000),
    },
    "mnist-dcgan": {
        "default": replace(
            _DEFAULT,
            net="mnist-dcgan",
            about=_DCGAN,
            steps=5000,
            batch=32,
            penalty_every=4,
            beta1=0.0,
            beta2=0.99,
            log_every=100,
            sample_every=500,
            checkpoint_every=1000,
        ),
        "ocaml-torch": replace(_OCAML, net="mnist-dcgan", about=_DCGAN),
    },
    "mnist-cgan": {
        "default": replace(_PERCEPTRONS, net="mnist-cgan", about=_CGAN),
        "ocaml-torch": replace(
            _OCAML, net="mnist-cgan", about=_CGAN, batch=256, fake_labels="constant"
        ),
    },
}
