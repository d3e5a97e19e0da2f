"""minigan train"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from minigan.cli.errors import Refused

if TYPE_CHECKING:
    from minigan.cli.job import Job
    from minigan.data import Dataset
    from minigan.recipes import Recipe
    from minigan.runs import RunFolder
    from minigan.train import Trainer

_SKIPPED_SHOWN = 5


@click.command(short_help="Train a recipe, or go on with a run.")
@click.argument("recipe", required=False)
@click.option("--preset", help="Hyper-parameters: default, or ocaml-torch for the source's own.")
@click.option("--steps", metavar="N", help="How long to train.")
@click.option("--batch", metavar="N", help="Images a batch.")
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="mnist-10k (embedded), mnist, fashion-mnist; "
    "or IDX files, an .npz, a folder or .zip of images.",
)
@click.option("--seed", metavar="N", help="Of all random numbers: one seed, one result.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Any field of the recipe, as minigan recipes RECIPE lists them; repeatable.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "sim"]),
    help="cpu (default), cuda: an NVIDIA GPU, sim: the CUDA kernels, interpreted.",
)
@click.option("--out", metavar="FOLDER", help="New run folder; default runs/NNNN-RECIPE.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN]",
    help="Go on with a run folder, a checkpoint in it, or the newest run of RECIPE.",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "skip", "rollback"]),
    default="stop",
    show_default=True,
    help="A NaN or infinity: stop, skip the update, or go back to "
    "the newest checkpoint and on with other random numbers.",
)
@click.option(
    "--threads",
    type=int,
    metavar="N",
    help="Cores that compute; default all, or MINIGAN_NUM_THREADS. Results are the same bits for "
    "the same number.",
)
@click.option(
    "--cuda-graph",
    is_flag=True,
    help="On device cuda: capture a step's launches once and replay them as one.",
)
@click.option("--dry-run", is_flag=True, help="Print nets, memory, time and plan; write nothing.")
def train(
    recipe: str | None,
    preset: str | None,
    steps: str | None,
    batch: str | None,
    data: str | None,
    seed: str | None,
    sets: tuple[str, ...],
    device: str | None,
    out: str | None,
    resume: str | None,
    on_nan: str,
    threads: int | None,
    cuda_graph: bool,
    dry_run: bool,
) -> None:
    """Train RECIPE; minigan recipes lists them.

    \b
    minigan train mnist-dcgan
    minigan train mnist-cgan --data mnist --steps 20000 --set lr_g=1e-4
    minigan train mnist-dcgan --resume                  the newest run goes on
    minigan train mnist-dcgan --resume --steps 5000     further than was planned

    Everything goes into a run folder: config.json, log.jsonl, grids of samples, progress.gif,
    checkpoints. Ctrl-C finishes the step, saves, and says how to go on.

    While it trains: D(x) and D(G(z)) are how real the discriminator finds real and made images, 0
    to 1; both near 0.5 means that it cannot tell them apart. "D right" is how often it can.

    Exit codes: 0 done, 1 NaN or infinity, 2 bad input or a full disk, 130 stopped by Ctrl-C.
    """
    from minigan.cli import job as jobs
    from minigan.kernels.threads import count, set_count
    from minigan.recipes import RECIPES

    try:
        set_count(threads)
    except ValueError as error:
        raise Refused(f"--{error}") from None
    if cuda_graph and on_nan == "skip":
        raise Refused("--cuda-graph: a captured step cannot leave an update out: --on-nan stop")
    settings = _settings(sets, steps=steps, batch=batch, data=data, seed=seed)
    if recipe is None and resume in RECIPES:  # `--resume mnist-dcgan` takes the recipe as its value
        recipe, resume = resume, jobs.LATEST
    if resume is not None:
        job = jobs.resumed(resume, recipe, preset, settings, device, branch=out is not None)
    elif recipe is not None:
        job = jobs.new(recipe, preset, settings, device)
    else:
        raise click.UsageError(f"which recipe? There are {', '.join(RECIPES)}")
    for note in job.notes:
        click.echo(note)
    if job.run and (began := job.run.threads()) not in (None, count()):
        click.echo(
            f"the run began on {began} threads and goes on with {count()}: sums are taken in "
            f"another order, so the last bits may differ; --threads {began} keeps them"
        )

    dataset = _load(job.recipe)
    trainer = _trainer(job, dataset, cuda_graph)
    if dry_run:
        from minigan.cli.plan import show

        show(trainer, job.name, job.run.path if job.run and not out else out)
    elif job.run and not out and trainer.step == job.recipe.steps:
        _say_finished(trainer, job.run, job.name)
    else:
        run = _folder(job, trainer, out)
        _introduce(trainer, job, run)
        click.get_current_context().exit(_train(trainer, run, job.name, on_nan))


def _settings(sets: tuple[str, ...], **shorthands: str | None) -> dict[str, str]:
    """--set's fields and those with options of their own, as text."""
    settings = {name: text for name, text in shorthands.items() if text is not None}
    for given in sets:
        name, equals, text = given.partition("=")
        if not equals:
            raise Refused(f"--set {given}: give it as FIELD=VALUE, like --set batch=32")
        if name in settings:
            raise Refused(f"--set {given}: {name} is given twice")
        settings[name] = text
    return settings


# -------------------------------------------------------------------------------------------- data


def _load(recipe: Recipe) -> Dataset:
    """The recipe's set, its images brought to the size and channels that the nets take."""
    from minigan import data
    from minigan.cli.progress import working
    from minigan.models import FAMILIES

    channels, size, _ = FAMILIES[recipe.net].image
    with working(f"reading {recipe.data}") as progress:
        return data.load(recipe.data, size=size, channels=channels, progress=progress)


# ----------------------------------------------------------------------------------------- the job


def _trainer(job: Job, dataset: Dataset, graph: bool) -> Trainer:
    """The trainer of a job, as far as it has come."""
    from minigan.cli.progress import make_kernels_ready
    from minigan.train import Trainer

    trainer = Trainer(job.recipe, dataset, job.device, graph)
    make_kernels_ready(trainer)
    if job.start is not None:
        trainer.restore(job.start)
    if trainer.step > job.recipe.steps:
        raise Refused(f"--steps {job.recipe.steps}: the run is beyond that, at {trainer.step}")
    return trainer


def _folder(job: Job, trainer: Trainer, out: str | None) -> RunFolder:
    """The run folder to train in: a new one, a copy of the job's, or the job's own."""
    from minigan.cli.job import copy_history
    from minigan.data import NAMES
    from minigan.runs import RunFolder

    # The path of a set is kept in a form that a resume finds from any folder.
    data = job.recipe.data if job.recipe.data in NAMES else os.path.abspath(job.recipe.data)
    config = {
        "name": job.name,
        "preset": job.preset,
        "device": job.device,
        "recipe": {**job.recipe.to_dict(), "data": data},
        "data": str(trainer.dataset),
    }
    if job.run is not None and out is None:
        job.run.update_config(**config)
        job.run.rewind(trainer.step)
        return job.run
    run = RunFolder.create(Path(out) if out else None, job.name, config)
    if job.run is not None:
        copy_history(job.run, run)
        run.rewind(trainer.step)
        run.save_checkpoint(trainer.checkpoint(), job.recipe.keep_checkpoints)
    return run


# -------------------------------------------------------------------------------------------- text


def _introduce(trainer: Trainer, job: Job, run: RunFolder) -> None:
    r, dataset = trainer.recipe, trainer.dataset
    nets = {"generator": trainer.generator, "discriminator": trainer.discriminator}
    sizes = (f"{k} {v.parameter_count():,}".replace(",", " ") for k, v in nets.items())
    epochs = r.steps * r.n_critic * r.batch / len(dataset)
    click.echo(f"{job.name} ({job.preset}): {', '.join(sizes)} parameters")
    click.echo(str(dataset))
    for file, reason in dataset.skipped[:_SKIPPED_SHOWN]:
        click.echo(f"  skipped {file}: {reason}")
    if len(dataset.skipped) > _SKIPPED_SHOWN:
        click.echo(f"  and {len(dataset.skipped) - _SKIPPED_SHOWN} more")
    if dataset.classes and not trainer.classes:
        click.echo(f"  its labels are not used: {r.net} takes none")
    start = f"from step {trainer.step} to {r.steps}" if trainer.step else f"{r.steps} steps"
    click.echo(
        f"{start}, {r.batch} images each, {epochs:.3g} epochs in all, "
        f"on {trainer.device}, into {run.path}"
    )


def resume_command(name: str, path: Path, on_nan: str = "stop") -> str:
    """What to type to go on with the run at `path`."""
    words = ["minigan", "train", name, "--resume", str(path)]
    return shlex.join(words + (["--on-nan", on_nan] if on_nan != "stop" else []))


# ---------------------------------------------------------------------------------------- training


@contextmanager
def _stop_signals(stopping: Callable[[], None]) -> Iterator[list[int]]:
    """Yields a list that holds the first SIGINT or SIGTERM; a second one interrupts."""
    got: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)
        stopping()

    old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _say_finished(trainer: Trainer, run: RunFolder, name: str) -> None:
    run.save_progress()  # in case it was killed before that
    click.echo(
        f"{run.path} is finished: it is at step {trainer.step}. To train further:\n"
        f"  {resume_command(name, run.path)} --steps {2 * trainer.step}"
    )


def _train(trainer: Trainer, run: RunFolder, name: str, on_nan: str) -> int:
    """Train to the end, or to a signal; returns the exit code."""
    from minigan import checkpoint
    from minigan.cli.progress import clock, reporter
    from minigan.loop import fit
    from minigan.train import NonFinite

    again = resume_command(name, run.path, on_nan)
    begun = time.perf_counter()
    try:
        with reporter(trainer, name) as told, _stop_signals(told.stopping) as got:
            done = fit(trainer, run, on_nan=on_nan, reporter=told, should_stop=lambda: bool(got))
    except (OSError, MemoryError, KeyboardInterrupt) as error:
        if saved := checkpoint.all_in(run.checkpoints):
            error.add_note(f"the newest checkpoint stands ({saved[0].name}); go on with: {again}")
        raise
    except NonFinite as error:
        if on_nan == "stop":
            again = resume_command(name, run.path, "rollback")
            error.add_note(f"or go on from its checkpoint with other random numbers: {again}")
        raise
    if not done:
        click.echo(f"stopped after step {trainer.step} and saved; go on with:\n  {again}")
        return 128 + got[0]
    files = {
        "last grid": run.samples / f"{trainer.step:08d}.png",
        "progress": run.path / "progress.gif",
        "checkpoints": run.checkpoints,
        "log": run.log_path,
    }
    click.echo(f"finished {trainer.step} steps in {clock(time.perf_counter() - begun)}")
    for what, path in files.items():
        click.echo(f"  {what:12} {path}")
    click.echo(f"  {'more samples':12} {shlex.join(['minigan', 'sample', str(run.path)])}")
    return 0
