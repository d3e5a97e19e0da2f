"""How a training looks: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from minigan.train import Trainer

STOPPING = "finishing the step and saving; Ctrl-C again quits at once"
_SLOW = 2.0  # seconds after which a silent wait gets a line


def on_terminal() -> bool:
    """Whether stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def working(text: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show that something takes time; yields what is told (the file that is downloaded or "", how
    much is done, of how much)."""
    if on_terminal():
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
        with Progress(*columns, console=Console(), transient=True) as bar:
            task = bar.add_task(text, total=None)
            yield lambda name, done, total: bar.update(
                task,
                description=_download(name, total) if name else text,
                completed=done,
                total=total or None,
            )
        return
    told: set[str] = set()

    def downloading(name: str, done: int, total: int) -> None:
        if name and name not in told:
            told.add(name)
            click.echo(_download(name, total), err=True)

    say = partial(click.echo, f"{text} ...", err=True)  # standard output may be JSON
    timer = threading.Timer(_SLOW, say)
    timer.daemon = True
    timer.start()
    try:
        yield downloading
    finally:
        timer.cancel()


def make_kernels_ready(trainer: Trainer) -> None:
    """Compile the kernels, which takes seconds the first time and is cached then."""
    with working("compiling the kernels, once") as progress:
        trainer.warm_up(lambda ready, total: progress("", ready, total))


def _download(name: str, total: int) -> str:
    return f"downloading {name}" + (f" ({total / 1e6:.1f} MB)" if total else "")


def figures(metrics: dict[str, float]) -> str:
    """The metrics of a log line or a step, in one line; those that are missing are left out."""
    shown = (
        ("loss D", "d_loss", "{:.3f}"),
        ("G", "g_loss", "{:.3f}"),
        (" penalty", "penalty", "{:.3f}"),
        (" D(x)", "d_real", "{:.2f}"),
        ("D(G(z))", "d_fake", "{:.2f}"),
        (" D right on real", "accuracy_real", "{:.0%}"),
        ("fake", "accuracy_fake", "{:.0%}"),
    )
    return " ".join(f"{text} {form.format(metrics[k])}" for text, k, form in shown if k in metrics)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03"""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Lines:
    """A train.Reporter that prints a line for every log record."""

    def __init__(self, trainer: Trainer) -> None:
        self.recipe = trainer.recipe

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, trainer: Trainer) -> None: ...

    def log(self, record: dict[str, Any]) -> None:
        step, steps, rate = record["step"], self.recipe.steps, record["images_per_second"]
        left = clock((steps - step) * self.recipe.batch / rate)
        click.echo(
            f"{step:>{len(str(steps))}}/{steps}  {figures(record)}  "
            f"{rate:.0f} images/s  {left} left"
        )

    def note(self, text: str) -> None:
        click.echo(text)

    def stopping(self) -> None:
        """Called by a signal handler, where print is not safe."""
        os.write(1, f"{STOPPING}\n".encode())


class Display:
    """A train.Reporter that keeps a bar and the newest figures at the bottom of a terminal."""

    def __init__(self, trainer: Trainer, name: str) -> None:
        self.batch = trainer.recipe.batch
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            expand=True,
        )
        total = trainer.recipe.steps
        self.task = self.bar.add_task(name, total=total, completed=trainer.step, rate="")
        first = "" if trainer.device == "cpu" else "compiling kernels"
        self.text = Text(first, style="dim")
        self.live = Live(Group(self.bar, self.text), console=Console(), refresh_per_second=5)
        self.stop = False

    def __enter__(self) -> Display:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, trainer: Trainer) -> None:
        speed = self.bar.tasks[0].speed
        rate = f"{speed * self.batch:.0f} images/s" if speed else ""
        self.bar.update(self.task, completed=trainer.step, rate=rate)
        if trainer.sums and not self.stop:
            self.text.plain = figures({k: total / n for k, (total, n) in trainer.sums.items()})

    def log(self, record: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None:
        self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stopping(self) -> None:
        """Called by a signal handler: the display's own thread draws it."""
        self.stop = True
        self.text.plain = STOPPING


def reporter(trainer: Trainer, name: str) -> Display | Lines:
    """The one that suits stdout; a context manager."""
    return Display(trainer, name) if on_terminal() else Lines(trainer)
