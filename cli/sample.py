"""minigan sample"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minigan.cli.errors import Refused

if TYPE_CHECKING:
    import numpy as np

    from minigan.sample import Sampler


@click.command(short_help="Draw samples from a run.")
@click.argument("run", required=False)
@click.option("--count", type=click.IntRange(1, 100_000), help="How many; default 100.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**63 - 1),
    multiple=True,
    help="Which ones: one seed, one result; default 0. Several for --interpolate.",
)
@click.option(
    "--label", type=int, help="The class of all; default: each in turn, or 0 with --interpolate."
)
@click.option("--grid/--single", default=True, help="One picture of all (default), or a file each.")
@click.option("--columns", type=click.IntRange(1, 10_000), help="Of the grid.")
@click.option(
    "--interpolate",
    type=click.IntRange(2, 10_000),
    metavar="N",
    help="N pictures on the way from a seed to the next: a row each, or a GIF.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda", "sim"]), default="cpu")
@click.option(
    "--out",
    metavar="PATH",
    help="A new .png, or .gif with --interpolate, or with "
    "--single a folder; default: a new name in RUN/generated.",
)
def sample(
    run: str | None,
    count: int | None,
    seeds: tuple[int, ...],
    label: int | None,
    grid: bool,
    columns: int | None,
    interpolate: int | None,
    device: str,
    out: str | None,
) -> None:
    """Draw samples from RUN: a run folder or a checkpoint in it; default the newest run.

    \b
    minigan sample
    minigan sample runs/0001-mnist-cgan --label 7 --count 25
    minigan sample --seed 1 --seed 5 --interpolate 12 --out way.gif
    """
    from minigan import checkpoint
    from minigan.cli.job import find_run
    from minigan.sample import Sampler

    _check(count, seeds, grid, columns, interpolate, out)
    folder, file = find_run(run)
    if file is None:
        file, content, damaged = folder.newest_checkpoint()
        for reason in damaged:
            click.echo(f"passed over: {reason}")
    else:
        content = checkpoint.load(file)
    sampler = Sampler.of(content, device)
    if label is not None and not sampler.classes:
        raise Refused(f"--label {label}: {sampler.recipe.net} knows no classes")
    if label is not None and not 0 <= label < sampler.classes:
        raise Refused(f"--label {label}: the classes are 0 to {sampler.classes - 1}")

    seeds = seeds or (0,)
    step = content.state["step"]
    if interpolate and sampler.classes and label is None:
        label = 0
    kind = f"-label-{label}" if label is not None else ""
    if interpolate:
        ends = (*seeds, seeds[0] + 1) if len(seeds) == 1 else seeds
        images = path_between(sampler, ends, interpolate, label)
        name = f"step-{step}-from-{'-to-'.join(map(str, ends))}{kind}"
        columns = columns or interpolate
    else:
        images = sampler.samples(count or 100, seeds[0], label)
        name = f"step-{step}-seed-{seeds[0]}{kind}"
    target = Path(out) if out else _new_name(folder.path / "generated", name, grid)
    if columns is None and sampler.classes and label is None:
        columns = sampler.classes
    _write(images, target, grid, columns)
    click.echo(f"{len(images)} samples of step {step}: {target}")


def _check(
    count: int | None,
    seeds: tuple[int, ...],
    grid: bool,
    columns: int | None,
    interpolate: int | None,
    out: str | None,
) -> None:
    """Raises: Refused for options that do not go together, or an --out that is taken."""
    if interpolate and count:
        raise Refused("--count: --interpolate says how many")
    if len(seeds) > 1 and not interpolate:
        raise Refused("--seed: several are for --interpolate")
    if columns and not grid:
        raise Refused("--columns: --single makes no grid")
    if out is None:
        return
    path = Path(out)
    endings = ((".png", ".gif") if interpolate else (".png",)) if grid else ("",)
    if path.suffix.lower() not in endings and grid:
        raise Refused(f"--out {out}: must end in {' or '.join(endings)}")
    if path.exists() and (grid or not path.is_dir() or any(path.iterdir())):
        raise Refused(f"--out {out}: exists, and is not overwritten")


def _new_name(folder: Path, name: str, grid: bool) -> Path:
    """folder/name, with a number behind it if that is taken."""
    ending = ".png" if grid else ""
    path, i = folder / f"{name}{ending}", 1
    while path.exists():
        i += 1
        path = folder / f"{name}-{i}{ending}"
    return path


def path_between(sampler: Sampler, seeds: tuple[int, ...], n: int, label: int | None) -> np.ndarray:
    """n images from the first sample of each seed to that of the next, both ends included.

    Linear for uniform latents, which are a cube; along the great circle for normal ones, which
    lie near a sphere (White 2016, "Sampling generative networks").
    """
    import numpy as np

    ends = [sampler.latents(1, seed)[0] for seed in seeds]
    between = _linear if sampler.recipe.latent == "uniform" else _spherical
    z = [between(a, b, t) for a, b in itertools.pairwise(ends) for t in np.linspace(0.0, 1.0, n)]
    return sampler.images(np.stack(z).astype(np.float32), label)


def _linear(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    return (1 - t) * a + t * b


def _spherical(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """(sin((1-t)ω) a + sin(tω) b) / sin ω, ω the angle between a and b."""
    import numpy as np

    cosine = (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    omega = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.sin(omega) < 1e-4:
        return _linear(a, b, t)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def _write(images: np.ndarray, target: Path, as_grid: bool, columns: int | None) -> None:
    from minigan.data import grid, save_gif, save_png

    (target.parent if as_grid else target).mkdir(parents=True, exist_ok=True)
    if not as_grid:
        for i, image in enumerate(images):
            save_png(image.transpose(1, 2, 0), target / f"{i:05d}.png")  # (C,H,W) -> (H,W,C)
    elif target.suffix.lower() == ".gif":
        save_gif([grid(image[None], pad=0) for image in images], target, 80, 800)
    else:
        save_png(grid(images, columns), target)
