"""The loop of a training: steps, and what is logged, drawn and saved between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from minigan.data import to_uint8
from minigan.runs import RunFolder
from minigan.train import GRID, NonFinite, Trainer

_MOST_SKIPS = 100  # steps in a row that --on-nan skip leaves out before it gives up
_MOST_ROLLBACKS = 5


class Reporter(Protocol):
    """Who is told of a training's progress; the command line draws it."""

    def step(self, trainer: Trainer) -> None:
        """After every step."""

    def log(self, record: dict[str, Any]) -> None:
        """After every log line."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


@dataclass(frozen=True)
class Quiet:
    """A Reporter that says nothing."""

    def step(self, trainer: Trainer) -> None: ...
    def log(self, record: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


def fit(
    trainer: Trainer,
    run: RunFolder,
    *,
    on_nan: str = "stop",
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train to recipe.steps, leaving everything in `run`. Returns whether it got there.

    should_stop: asked after every step; if true, the state is saved and training ends early.
    on_nan: "stop", "skip" (leave the update out) or "rollback" (to the newest checkpoint, and on
    with other random numbers).

    Raises: NonFinite; OSError where the disk is full or not writable: the newest checkpoint stands.
    """
    reporter = reporter or Quiet()
    recipe = trainer.recipe
    if trainer.step == 0:
        reals, _ = trainer.batches.batch_at(0)
        run.save_reals(to_uint8(reals[:GRID], trainer.dataset.value_range))
        _draw(trainer, run)
        _save(trainer, run)
    clock, clocked, skips = time.perf_counter(), trainer.step, 0
    stopped = False

    looks = recipe.log_every, recipe.sample_every, recipe.checkpoint_every

    def due(every: int) -> bool:
        return trainer.step % every == 0 or trainer.step == recipe.steps

    while trainer.step < recipe.steps and not stopped:
        try:
            trainer.advance("skip" if on_nan == "skip" else "stop")
            stopped = should_stop()
            if stopped or any(map(due, looks)):
                trainer.check()
        except NonFinite as error:
            if on_nan != "rollback":
                raise
            _roll_back(trainer, run, error, reporter)
            clock, clocked = time.perf_counter(), trainer.step
            continue
        step = trainer.step
        skips = skips + 1 if trainer.skipped else 0
        if skips >= _MOST_SKIPS:
            raise NonFinite(step, "generator or discriminator", None)
        reporter.step(trainer)
        if due(recipe.log_every):
            now = time.perf_counter()
            record = {"step": step, **trainer.averages()}
            record["images_per_second"] = (step - clocked) * recipe.batch / (now - clock)
            clock, clocked = now, step
            run.append_log(record)
            reporter.log(record)
        if due(recipe.sample_every):
            _draw(trainer, run)
        if due(recipe.checkpoint_every) or stopped:
            _save(trainer, run)
    run.save_progress()
    return trainer.step >= recipe.steps


def _draw(trainer: Trainer, run: RunFolder) -> None:
    sampler = trainer.sampler()
    run.save_samples(trainer.step, sampler.samples(GRID, trainer.recipe.seed))


def _save(trainer: Trainer, run: RunFolder) -> None:
    run.save_checkpoint(trainer.checkpoint(), trainer.recipe.keep_checkpoints)


def _roll_back(trainer: Trainer, run: RunFolder, error: NonFinite, reporter: Reporter) -> None:
    rollbacks = trainer.rollbacks + 1
    if rollbacks > _MOST_ROLLBACKS:
        raise error
    path, content, _ = run.newest_checkpoint()
    trainer.restore(content)
    trainer.rollbacks = rollbacks
    run.rewind(trainer.step)
    reporter.note(f"{error}; back to {path.name} (rollback {rollbacks} of {_MOST_ROLLBACKS})")
