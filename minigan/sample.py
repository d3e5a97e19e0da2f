"""Samples: from a training, or from a checkpoint of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigan import kernels
from minigan.array import Stream, check_device, to_device, to_numpy
from minigan.checkpoint import Checkpoint
from minigan.data import to_uint8
from minigan.gan import generate
from minigan.models import FAMILIES
from minigan.nn import Module
from minigan.recipes import Recipe
from minigan.runs import RunError

_SAMPLE_BATCH = 128  # samples are made in batches of this size, however many are asked for
_GUESTS = 16  # latents of a caller's own in such a batch


class Sampler:
    """Samples from a generator: the i-th is a function of (seed, i, label) alone.

    Latents come in batches of 128, and whole batches are generated, however many samples are
    asked for: nets whose batch norm uses batch statistics then give the same i-th sample too.

    Raises: DeviceError.
    """

    def __init__(self, recipe: Recipe, generator: Module, device: str) -> None:
        self.recipe, self.generator, self.device = recipe, generator, use_device(device)
        self.family = FAMILIES[recipe.net]
        self.classes = self.family.classes

    @staticmethod
    def of(checkpoint: Checkpoint, device: str = "cpu") -> Sampler:
        """The sampler of a training as it was saved.   Raises: RunError, RecipeError."""
        recipe = recipe_of(checkpoint)
        generator, _ = FAMILIES[recipe.net].build(recipe.latent_dim, recipe.init)
        part = "average" if recipe.ema else "generator"
        load_part(generator, part, checkpoint)
        return Sampler(recipe, generator.to(device), device)

    def latents(self, count: int, seed: int) -> np.ndarray:
        """float32 (count, latent_dim), in whole batches drawn and then cut."""
        chunks = -(-count // _SAMPLE_BATCH)
        drawn = [
            draw_latents(self.recipe, Stream(seed, "samples", i), _SAMPLE_BATCH)
            for i in range(chunks)
        ]
        return np.concatenate(drawn)[:count]

    def samples(self, count: int, seed: int, label: int | None = None) -> np.ndarray:
        """uint8 (count,C,H,W).   label: of all; None gives sample i the class i mod classes."""
        whole = -(-count // _SAMPLE_BATCH) * _SAMPLE_BATCH
        z, labels = self.latents(whole, seed), self._labels(whole, label)
        batches = [slice(i, i + _SAMPLE_BATCH) for i in range(0, whole, _SAMPLE_BATCH)]
        return np.concatenate([self._generate(z, labels, batch) for batch in batches])[:count]

    def images(self, z: np.ndarray, label: int | None = None) -> np.ndarray:
        """uint8 (N,C,H,W) of latents z (N,latent_dim), say of a path between two.   label: of all.

        Each is made among usual samples, 16 in a batch, so that batch statistics are the usual.
        """
        labels = self._labels(_SAMPLE_BATCH, label)
        made = []
        for guests in (z[i : i + _GUESTS] for i in range(0, len(z), _GUESTS)):
            batch = self.latents(_SAMPLE_BATCH, seed=0)
            batch[: len(guests)] = guests
            made.append(self._generate(batch, labels, slice(None))[: len(guests)])
        return np.concatenate(made)

    def _labels(self, count: int, label: int | None) -> np.ndarray | None:
        if not self.classes:
            return None
        return np.arange(count) % self.classes if label is None else np.full(count, label)

    def _generate(self, z: np.ndarray, labels: np.ndarray | None, batch: slice) -> np.ndarray:
        net, training = self.generator, self.generator.training
        net.eval()
        x = generate(
            net, to_device(z[batch], self.device), None if labels is None else labels[batch]
        )
        net.train(training)
        return to_uint8(to_numpy(x), self.family.value_range)


def draw_latents(recipe: Recipe, stream: Stream, n: int) -> np.ndarray:
    """float32 (n, latent_dim), of the recipe's distribution."""
    shape = (n, recipe.latent_dim)
    return stream.normal(shape) if recipe.latent == "normal" else stream.uniform(shape, -1.0, 1.0)


def use_device(device: str) -> str:
    """`device`, ready to compute.   Raises: DeviceError."""
    check_device(device)
    if device != "cuda":
        kernels.set_host(device)
    return device


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """The recipe that a checkpoint was trained with.   Raises: RunError, RecipeError."""
    if (its := checkpoint.state.get("format")) != 1:
        raise RunError(f"the checkpoint has format {its}, not 1: it is of another version")
    return Recipe.from_dict(checkpoint.state["recipe"])


def load_part(owner: Any, part: str, checkpoint: Checkpoint) -> None:
    """Give a network or optimizer what a checkpoint has saved of it.   Raises: RunError."""
    prefix = f"{part}."
    values = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items()
              if k.startswith(prefix)}  # fmt: skip
    try:
        owner.load_state_dict(values)
    except ValueError as error:
        raise RunError(f"the checkpoint does not fit the recipe: {part}: {error}") from None
