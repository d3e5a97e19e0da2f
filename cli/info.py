"""minigan info"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from minigan.runs import RunFolder

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 50  # of a sparkline
_CURVES = ("d_loss", "g_loss", "d_real", "d_fake")


@click.command(short_help="Say how far a run has come.")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="All of it as JSON.")
def info(run: str | None, as_json: bool) -> None:
    """Say how far RUN has come: a run folder; default the newest under runs/.

    \b
    minigan info
    minigan info runs/0001-mnist-dcgan --json
    """
    from minigan.cli.job import find_run

    folder, _ = find_run(run)
    facts = gather(folder)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(facts, folder.log())


def gather(run: RunFolder) -> dict[str, Any]:
    """What there is to know of a run; checkpoints are read to see whether they are good."""
    from minigan import checkpoint
    from minigan.checkpoint import Checkpoint
    from minigan.cli.train import resume_command

    config, recipe = run.config(), run.recipe()
    saved: list[dict[str, Any]] = [
        {
            "file": str(path),
            "step": checkpoint.step_of(path),
            "bytes": path.stat().st_size,
            "damage": None if isinstance(content, Checkpoint) else str(content),
        }
        for path, content in checkpoint.candidates(run.checkpoints)
    ]
    good = [c["step"] for c in saved if c["damage"] is None]
    log = run.log()
    environment = run.path / "environment.json"
    try:
        machine = json.loads(environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        machine = {}
    step = max(good, default=0)
    return {
        "run": str(run.path),
        "recipe": config.get("name"),
        "preset": config.get("preset"),
        "device": config.get("device"),
        "step": step,
        "steps": recipe.steps,
        "finished": step >= recipe.steps,
        "settings": recipe.to_dict(),
        "data": config.get("data"),
        "checkpoints": saved,
        "last_log": log[-1] if log else None,
        "environment": machine,
        "resume": resume_command(str(config.get("name")), run.path),
        "sample": f"minigan sample {run.path}",
    }


def _show(facts: dict[str, Any], log: list[dict[str, Any]]) -> None:
    from minigan.cli.progress import figures

    state = "finished" if facts["finished"] else "not finished"
    click.echo(f"{facts['run']}: {facts['recipe']} ({facts['preset']}) on {facts['device']}")
    click.echo(f"  step        {facts['step']} of {facts['steps']}, {state}")
    if data := facts["data"]:
        click.echo(f"  data        {data}")
    for i, c in enumerate(facts["checkpoints"]):
        health = c["damage"] or "good"
        title = "checkpoints" if i == 0 else ""
        click.echo(f"  {title:11} step {c['step']}, {c['bytes'] / 1e6:.1f} MB, {health}")
    if last := facts["last_log"]:
        click.echo(f"  last log    step {last['step']}: {figures(last)}")
    for name in _CURVES:
        values = [r[name] for r in log if isinstance(r.get(name), int | float)]
        if len(values) > 1:
            click.echo(f"  {name:11} {sparkline(values)}  {min(values):.3f} to {max(values):.3f}")
    if machine := facts["environment"]:
        click.echo(
            f"  made on     {machine.get('cpu')}, Python {machine.get('python')}, NumPy "
            f"{machine.get('numpy')}, minigan {machine.get('minigan')}"
        )
    click.echo(f"  go on       {facts['resume']}" + (" --steps MORE" if facts["finished"] else ""))
    click.echo(f"  sample      {facts['sample']}")


def sparkline(values: list[float]) -> str:
    """The means of at most 50 stretches of the values, as bars from the least to the greatest."""
    n = min(_WIDTH, len(values))
    edges = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[int((m - low) / span * 7.999) if span else 0] for m in means)
