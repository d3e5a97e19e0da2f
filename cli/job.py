"""What to train: a recipe from the start, or a run that goes on; and where a run is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from minigan import checkpoint
from minigan.checkpoint import Checkpoint
from minigan.cli.errors import Refused
from minigan.recipes import Recipe, find
from minigan.runs import RunError, RunFolder

# What does not change a step's result; `data` is compared by content.
MAY_CHANGE = ("steps", "data", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints")
LATEST = "latest"  # what --resume without a value means


@dataclass
class Job:
    """A training to do.

    run: what goes on; None for a new one.   start: None to begin at step 0.
    notes: what the user should know of it.
    """

    name: str
    preset: str
    recipe: Recipe
    device: str
    run: RunFolder | None = None
    start: Checkpoint | None = None
    notes: list[str] = field(default_factory=list)


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


def new(name: str, preset: str | None, settings: dict[str, str], device: str | None) -> Job:
    """Raises: RecipeError."""
    preset = preset or "default"
    recipe = find(name, preset).with_settings(settings)
    return Job(name, preset, recipe, device or "cpu")


def resumed(
    where: str,
    name: str | None,
    preset: str | None,
    settings: dict[str, str],
    device: str | None,
    branch: bool,
) -> Job:
    """The run that `where` names goes on, with `settings` applied to its recipe.

    branch: it goes on in a new folder, so an older checkpoint may be taken.
    Raises: RecipeError, RunError, CheckpointError; Refused for what may not be changed.
    """
    if name is not None:
        find(name)
    run, file = find_run(where, name)
    config = run.config()
    its_name, its_preset = str(config.get("name")), str(config.get("preset"))
    if name not in (None, its_name):
        raise RunError(f"{run.path} is a run of {its_name}, not of {name}")
    if preset not in (None, its_preset):
        raise Refused(f"--preset {preset}: {run.path} was begun with {its_preset}")
    recipe = run.recipe()
    changed = recipe.with_settings(settings)
    notes = []
    for setting in settings:
        old = getattr(recipe, setting)
        if old != getattr(changed, setting) and setting not in MAY_CHANGE:
            raise Refused(
                f"{setting} cannot be changed on --resume: {run.path} was begun with {old!r}; "
                f"only {', '.join(MAY_CHANGE)} can be"
            )
    if recipe.decay != "constant" and changed.steps != recipe.steps:
        notes.append(f"learning rates: their {recipe.decay} decay now ends at {changed.steps}")
    if file is not None:
        newest = checkpoint.all_in(run.checkpoints)[0]
        if newest.name != file.name and not branch:
            raise Refused(
                f"{file} is not the newest checkpoint of its run, {newest.name} is, and going on "
                "would delete that: add --out NEW-FOLDER to go on in another folder"
            )
        start: Checkpoint | None = checkpoint.load(file)
    elif checkpoint.all_in(run.checkpoints):
        _, start, damaged = run.newest_checkpoint()
        notes += [f"passed over: {reason}" for reason in damaged]
    else:
        start = None
    elsewhere = device or str(config.get("device", "cpu"))
    return Job(its_name, its_preset, changed, elsewhere, run, start, notes)


def copy_history(old: RunFolder, new: RunFolder) -> None:
    """Take over what `old` has logged and drawn."""
    if old.log_path.exists():
        shutil.copyfile(old.log_path, new.log_path)
    for path in [*old.path.glob("reals.png"), *old.samples.glob("*.png")]:
        shutil.copyfile(path, new.path / path.relative_to(old.path))
