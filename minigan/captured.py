"""A training step as a CUDA graph: its hundred launches become one.

A launch costs the host about ten times what a node of a graph does, and the small layers of a GAN
are done sooner than the host can launch them. A graph repeats the same launches with the same
arguments, so what changes from step to step is uploaded before each replay: batches, latents and
labels into the arrays that the step reads, the numbers of Adam and of the average through
kernels.launcher.numbers. Nothing in a step may wait for the GPU or draw on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigan.array import xp_of
from minigan.kernels.launcher import Graph
from minigan.recipes import Recipe, RecipeError

if TYPE_CHECKING:
    from minigan.train import Trainer


def check_recipe(recipe: Recipe, device: str) -> None:
    """Raises: RecipeError that says why a step of the recipe cannot be captured."""
    reasons = (
        (device != "cuda", f"needs device cuda, not {device}"),
        (recipe.penalty in ("wgan-gp", "dragan"), f"{recipe.penalty} draws random numbers in it"),
        (recipe.clip_grad_norm > 0, "clip_grad_norm waits for the norm"),
        (recipe.optimizer not in ("adam", "adamw"), f"{recipe.optimizer} takes its rate by value"),
    )
    for hinders, reason in reasons:
        if hinders:
            raise RecipeError(f"a CUDA graph of a training step: {reason}; train without it")


class CapturedStep:
    """The step of a trainer that has taken one like it already, so that its kernels are compiled.

    beside: another captured step of the same trainer.
    """

    def __init__(self, trainer: Trainer, beside: CapturedStep | None = None) -> None:
        self.trainer = trainer
        self.inputs = [turn.on(trainer.device) for turn in trainer.inputs()]
        self.graph: Graph = Graph(xp_of(self.inputs[0].z), beside.graph if beside else None)
        with self.graph.capture():
            self.turns = trainer.play(self.inputs)
        self.graph.replay()

    def advance(self) -> None:
        """Take another step, but for the trainer's count of them."""
        for mine, new in zip(self.inputs, self.trainer.inputs(), strict=True):
            mine.overwrite(new)
        with self.graph.refresh():
            self.trainer.update(self.turns)
        self.graph.replay()
