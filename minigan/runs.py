"""The run folder: what a training leaves on the disk.

runs/0001-mnist-dcgan/
    config.json          the resolved recipe, its name and preset, device, version
    environment.json     machine, Python, NumPy and its BLAS, threads
    log.jsonl            one JSON object for every logged step
    reals.png            real images, written as the samples are
    samples/00000500.png grids from fixed latents
    progress.gif         those grids in order
    checkpoints/         step-00000500.safetensors
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigan import checkpoint
from minigan.checkpoint import Checkpoint
from minigan.data import grid, save_gif, save_png
from minigan.files import naming, write_atomic
from minigan.recipes import Recipe, RecipeError

_NUMBERED = re.compile(r"(\d+)-.+")
_MOST_FRAMES = 100


class RunError(ValueError):
    """A folder that cannot be used as a run; one line that says why and what to do."""


class RunFolder:
    """An existing run. `create` makes a new one, `open` finds what is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.log_path = path / "log.jsonl"

    # ---------------------------------------------------------------------------------- new and old

    @staticmethod
    def create(path: Path | None, name: str, config: dict[str, Any]) -> RunFolder:
        """A new folder: `path`, which must be new or empty, or runs/NNNN-name.

        Raises: RunError if `path` holds something already; OSError if it cannot be written.
        """
        if path is None:
            path = _next_numbered(Path("runs"), name)
        else:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RunError(
                    f"{path} is not empty and is not overwritten: take another --out, "
                    f"or --resume {path} if it is a run to go on with"
                )
        run = RunFolder(path)
        run.checkpoints.mkdir()
        run.samples.mkdir()
        run._write_json("environment.json", environment())
        run._write_json("config.json", config)  # the last: it marks a folder as a run
        return run

    @staticmethod
    def open(path: Path) -> RunFolder:
        """The run at `path`.   Raises: RunError if there is none."""
        if not path.exists():
            raise RunError(f"{path}: no such run")
        if not (path / "config.json").is_file():
            raise RunError(f"{path} is no run: it has no config.json")
        return RunFolder(path)

    @staticmethod
    def latest(name: str | None = None, under: Path = Path("runs")) -> RunFolder:
        """The newest numbered run of recipe `name`, or of any.   Raises: RunError."""
        folders = under.iterdir() if under.is_dir() else iter(())
        found = [
            p for p in folders if _NUMBERED.fullmatch(p.name) and (p / "config.json").is_file()
        ]
        runs = sorted(found, key=lambda p: int(p.name.split("-")[0]), reverse=True)
        for path in runs:
            run = RunFolder(path)
            if name is None or run.config().get("name") == name:
                return run
        kind = f"run of {name}" if name else "run"
        raise RunError(f"no {kind} in {under}: give the path of one")

    # --------------------------------------------------------------------------------------- config

    def _write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        write_atomic(self.path / name, text.encode())

    def config(self) -> dict[str, Any]:
        """What config.json says.   Raises: RunError if it is damaged."""
        try:
            config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / 'config.json'} is damaged: {error}") from None
        if not isinstance(config, dict) or not isinstance(config.get("recipe"), dict):
            raise RunError(f"{self.path / 'config.json'} has no recipe")
        return config

    def recipe(self) -> Recipe:
        """The recipe that this run trains.   Raises: RunError."""
        try:
            return Recipe.from_dict(self.config()["recipe"])
        except (RecipeError, TypeError) as error:
            raise RunError(f"{self.path / 'config.json'}: {error}") from None

    def threads(self) -> int | None:
        """How many threads the run began with, as environment.json says; None if it does not."""
        try:
            text = (self.path / "environment.json").read_text(encoding="utf-8")
            return json.loads(text)["threads"]["kernels"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def update_config(self, **changes: Any) -> None:
        self._write_json("config.json", {**self.config(), **changes})

    # ---------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, content: Checkpoint, keep: int) -> Path:
        """Write the checkpoint of content.state["step"]; older ones than `keep` are deleted."""
        path = checkpoint.path_of(self.checkpoints, content.state["step"])
        checkpoint.save(path, content)
        checkpoint.prune(self.checkpoints, keep)
        return path

    def newest_checkpoint(self) -> tuple[Path, Checkpoint, list[str]]:
        """(path, content, why newer ones were passed over) of the newest good checkpoint.

        Raises: RunError if there is none.
        """
        reasons: list[str] = []
        for path, content in checkpoint.candidates(self.checkpoints):
            if isinstance(content, Checkpoint):
                return path, content, reasons
            reasons.append(str(content))
        raise RunError(
            f"{self.path} has no checkpoint to go on from" + "".join(f"; {r}" for r in reasons)
        )

    # ------------------------------------------------------------------------------------------ log

    def append_log(self, record: dict[str, Any]) -> None:
        """One more line of log.jsonl, flushed."""
        with naming(self.log_path), self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl; a line that a crash cut short is left out."""
        return list(self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.log_path.exists():
            return
        for line in self.log_path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record

    def rewind(self, step: int) -> None:
        """Forget what was logged and drawn after `step`: training goes on from there.

        Checkpoints of later steps, which are damaged, are renamed to *.damaged, or they would pass
        for the newest and good ones would be deleted in their place.
        """
        if self.log_path.exists():
            kept = [r for r in self._records() if r["step"] <= step]
            write_atomic(self.log_path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        for path in self.samples.glob("*.png"):
            if path.stem.isdigit() and int(path.stem) > step:
                path.unlink()
        for path in checkpoint.all_in(self.checkpoints):
            if checkpoint.step_of(path) > step:
                path.replace(path.with_name(f"{path.name}.damaged"))

    # ------------------------------------------------------------------------------------- pictures

    def save_reals(self, images: np.ndarray) -> None:
        """reals.png, from uint8 (N,C,H,W)."""
        save_png(grid(images), self.path / "reals.png")

    def save_samples(self, step: int, images: np.ndarray) -> Path:
        """samples/STEP.png, from uint8 (N,C,H,W)."""
        path = self.samples / f"{step:08d}.png"
        save_png(grid(images), path)
        return path

    def save_progress(self) -> Path | None:
        """progress.gif of the grids, evenly thinned to 100 frames; None if there is none."""
        paths = sorted(p for p in self.samples.glob("*.png") if p.stem.isdigit())
        if not paths:
            return None
        if len(paths) > _MOST_FRAMES:
            last = len(paths) - 1
            paths = [paths[i * last // (_MOST_FRAMES - 1)] for i in range(_MOST_FRAMES)]
        frames = [np.asarray(Image.open(p)) for p in paths]
        save_gif(frames, self.path / "progress.gif")
        return self.path / "progress.gif"


def _next_numbered(under: Path, name: str) -> Path:
    """Make runs/NNNN-name with the first free number; two trainings at once get two numbers."""
    under.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for p in under.iterdir() if (m := _NUMBERED.fullmatch(p.name))]
    number = max(taken, default=0) + 1
    while True:
        path = under / f"{number:04d}-{name}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def environment() -> dict[str, Any]:
    """Machine and versions, as environment.json has them."""
    from minigan import __version__
    from minigan.kernels import threads
    from minigan.system import blas, cpu_model, thread_counts

    return {
        "minigan": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas(),
        "threads": {**thread_counts(), "kernels": threads.count()},
        "platform": platform.platform(),
        "cpu": cpu_model(),
    }
