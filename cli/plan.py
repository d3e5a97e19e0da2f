"""What --dry-run prints: the nets, what a step costs, and what a training would write."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import click

from minigan.cli.progress import clock, working
from minigan.train import Trainer

_TIMED_SECONDS = 1.0


def show(trainer: Trainer, name: str, out: str | Path | None) -> None:
    """Print the plan of a training. Takes a few steps to measure them; writes nothing."""
    r, begun = trainer.recipe, trainer.step
    size = sum(a.nbytes for a in trainer.checkpoint().tensors.values()) / 1e6
    with working("measuring a step"):
        peak = _peak_memory(trainer)
        seconds = _step_seconds(trainer)
    for title, net in (("generator", trainer.generator), ("discriminator", trainer.discriminator)):
        click.echo(f"{title}\n{net!r}\n")

    def times(every: int) -> int:
        """How often a training does what it does so often, and at the end."""
        return r.steps // every - begun // every + (r.steps % every > 0)

    first = begun == 0  # samples and a checkpoint of the untrained nets
    images = r.n_critic * r.batch
    epochs = (r.steps - begun) * images / len(trainer.dataset)
    data = trainer.dataset.images.nbytes
    where = "of host memory; the GPU's is not measured" if trainer.device == "cuda" else ""
    saved = times(r.checkpoint_every) + first
    rows = (
        ("data", str(trainer.dataset)),
        ("steps", f"{begun} to {r.steps}, {images} images each: {epochs:.3g} epochs"),
        ("memory", f"{(peak + data) / 1e6:.0f} MB {where} at the peak of a step, measured"),
        ("", f"({data / 1e6:.0f} MB of it the data; Python and its libraries not counted)"),
        ("time", f"{clock(seconds * (r.steps - begun))} at {1000 * seconds:.1f} ms a step,"),
        ("", f"measured on {trainer.device} just now; samples and checkpoints come on top"),
        ("out", f"{out or f'runs/NNNN-{name}'}, which a dry run does not make:"),
        ("", "config.json, environment.json, reals.png, progress.gif"),
        ("", f"log.jsonl: {times(r.log_every)} lines"),
        ("", f"samples: {times(r.sample_every) + first} grids"),
        ("", f"checkpoints: {saved} of {size:.1f} MB, the newest {r.keep_checkpoints} kept"),
    )
    for title, text in rows:
        click.echo(f"{title:8}{' '.join(text.split())}")


def _peak_memory(trainer: Trainer) -> int:
    """Bytes that Python and NumPy hold at the peak of a step: nets, optimizers, activations."""
    tracemalloc.start()
    try:
        fresh = Trainer(trainer.recipe, trainer.dataset, trainer.device)
        fresh.advance("skip")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _step_seconds(trainer: Trainer) -> float:
    """The median step, after one to warm up, of as many as a second holds."""
    trainer.advance("skip")
    times: list[float] = []
    while sum(times) < _TIMED_SECONDS:
        begun = time.perf_counter()
        trainer.advance("skip")
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
