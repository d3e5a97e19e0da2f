"""Which run goes on, from where, and what may be changed about it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import click

from minigan import checkpoint
from minigan.checkpoint import Checkpoint
from minigan.recipes import Recipe
from minigan.runs import RunError, RunFolder

# What does not change a step's result; `data` is compared by content.
MAY_CHANGE = ("steps", "data", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints")
LATEST = "latest"  # what --resume without a value means


@dataclass
class Resumed:
    """A run to go on with.   start: None if it was stopped before its first checkpoint."""

    run: RunFolder
    name: str
    preset: str
    recipe: Recipe
    device: str
    start: Checkpoint | None
    notes: list[str]


def find_run(where: str | None, name: str | None = None) -> tuple[RunFolder, Path | None]:
    """(run, checkpoint file or None) of a run folder, a file in it, or None: the newest run."""
    if where is None or (where == LATEST and not Path(where).exists()):
        return RunFolder.latest(name), None
    path = Path(where)
    if not path.is_file():
        return RunFolder.open(path), None
    checkpoint.load(path)  # raises what is wrong with it
    folder = path.absolute().parent.parent
    if path.absolute().parent != RunFolder(folder).checkpoints or not (
        (folder / "config.json").is_file()
    ):
        raise RunError(f"{path} lies in no run: it belongs in the folder RUN/checkpoints")
    return RunFolder.open(path.parent.parent), path


def resumed(
    where: str, name: str | None, preset: str | None, settings: dict[str, str], branch: bool
) -> Resumed:
    """The run that `where` names, with `settings` applied to its recipe.

    branch: it goes on in a new folder, so an older checkpoint may be taken.
    Raises: RunError, CheckpointError; click.UsageError for what may not be changed.
    """
    run, file = find_run(where, name)
    config = run.config()
    its_name, its_preset = str(config.get("name")), str(config.get("preset"))
    if name not in (None, its_name):
        raise RunError(f"{run.path} is a run of {its_name}, not of {name}")
    if preset not in (None, its_preset):
        raise click.UsageError(f"--preset {preset}: {run.path} was begun with {its_preset}")
    recipe = run.recipe()
    changed = recipe.with_settings(settings)
    notes = []
    for field in settings:
        old, new = getattr(recipe, field), getattr(changed, field)
        if old != new and field not in MAY_CHANGE:
            raise click.UsageError(
                f"{field} cannot be changed on --resume: {run.path} was begun with {old!r}; "
                f"only {', '.join(MAY_CHANGE)} can be"
            )
    if recipe.decay != "constant" and changed.steps != recipe.steps:
        notes.append(f"learning rates: their {recipe.decay} decay now ends at {changed.steps}")
    if file is not None:
        newest = checkpoint.all_in(run.checkpoints)[0]
        if newest.name != file.name and not branch:
            raise click.UsageError(
                f"{file} is not the newest checkpoint of its run, {newest.name} is, and going on "
                "would delete that: add --out NEW-FOLDER to go on in another folder"
            )
        start: Checkpoint | None = checkpoint.load(file)
    elif checkpoint.all_in(run.checkpoints):
        _, start, damaged = run.newest_checkpoint()
        notes += [f"passed over: {reason}" for reason in damaged]
    else:
        start = None
    device = str(config.get("device", "cpu"))
    return Resumed(run, its_name, its_preset, changed, device, start, notes)


def copy_history(old: RunFolder, new: RunFolder) -> None:
    """Take over what `old` has logged and drawn."""
    if old.log_path.exists():
        shutil.copyfile(old.log_path, new.log_path)
    for path in [*old.path.glob("reals.png"), *old.samples.glob("*.png")]:
        shutil.copyfile(path, new.path / path.relative_to(old.path))
