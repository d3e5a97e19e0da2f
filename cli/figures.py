"""minigan kernels report and show: what the compiler and sim tell of a kernel."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minigan.cli.errors import Refused

if TYPE_CHECKING:
    from minigan.kernels.case import Case
    from minigan.kernels.report import Report
    from minigan.kernels.sim.counters import Counters, Counts

_COUNTED = "counted on sim, the interpreter of the compiler's PTX: no GPU timing"
_LEGEND = (
    ("regs", "registers of a thread; +n: bytes that it spills"),
    ("shared", "static and dynamic shared memory of a block, bytes"),
    ("occ", "occupancy: warps on a multiprocessor, of those that it can hold"),
    ("FMA", "share of float32 FMAs among the instructions of the hot loop"),
    ("sect", "sectors a request to global memory; 4: 32 floats in a row"),
    ("bank", "bank conflict of the worst line; 1: none, 2: two-way"),
    ("blocks", "blocks / multiprocessors of the card"),
    ("bytes", "moved from and to L2, over each array's size once"),
    ("bound", "what takes longest: issue (of instructions), fma, tensor, shared, l2,"),
    ("", "memory, latency, launch"),
)


@click.command(short_help="Registers, occupancy, memory, and what bounds each kernel.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--arch", default="sm_80", show_default=True, help="Architecture, like sm_90.")
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@click.option("--html", metavar="FILE", help="Write a page with plots, the roofline among them.")
@click.option("--update-budget", is_flag=True, help="Make these figures the budget of the tests.")
def report(
    names: tuple[str, ...], arch: str, as_json: bool, html: str | None, update_budget: bool
) -> None:
    """Figures of each kernel, or of those NAMEd, on an architecture; no GPU needed.

    On layers of mnist-dcgan, and on a wide one of a 64×64 DCGAN, at batch 64.

    \b
    minigan kernels report
    minigan kernels report conv2d --arch sm_90 --json
    minigan kernels report --html report.html
    """
    from minigan.cli.progress import working
    from minigan.kernels import budget
    from minigan.kernels import report as reporting
    from minigan.kernels.architectures import ARCHITECTURES

    if arch not in ARCHITECTURES:
        raise Refused(f"--arch {arch}: choose one of {', '.join(ARCHITECTURES)}")
    if html and Path(html).is_dir():
        raise Refused(f"--html {html}: is a folder; give a file, like report.html")
    cases = [c for c in _cases(names) if ARCHITECTURES[arch].tensor or not c.needs_tensor_cores]
    if update_budget and (names or arch != "sm_80"):
        raise Refused("--update-budget: takes all kernels, on sm_80; leave out NAME and --arch")
    with working(f"counting {len(cases)} launches"):
        reports = [reporting.report(case, arch) for case in cases]
        text = _page(reports) if html else ""
        if update_budget:
            budget.write(budget.measure(reports), _launches())
    if html:
        Path(html).write_text(text, encoding="utf-8")
        click.echo(f"wrote {html}", err=as_json)
    if update_budget:
        click.echo(f"wrote {budget.FILE}", err=as_json)
    if as_json:
        found = {
            "arch": arch,
            "card": ARCHITECTURES[arch].card,
            "sources": reporting.SOURCES,
            "reports": [r.as_dict() for r in reports],
        }
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif not html and not update_budget:
        _show_reports(reports)


def _launches() -> dict[str, int]:
    """Kernels that steps of mnist-dcgan launch on a GPU, with and without its penalty."""
    from minigan.data import load
    from minigan.recipes import find
    from minigan.train import launches_of_steps

    recipe = find("mnist-dcgan")
    without, with_r1 = launches_of_steps(recipe, load("mnist-10k"))
    return {"mnist-dcgan": without, "mnist-dcgan with R1": with_r1}


def _cases(names: tuple[str, ...]) -> list[Case]:
    from minigan.kernels import report as reporting

    try:
        return reporting.chosen(names)
    except ValueError as error:
        raise Refused(str(error)) from None


def _page(reports: list[Report]) -> str:
    try:
        from minigan.kernels.page import page
    except ImportError:
        raise Refused(
            "--html draws with matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return page(reports)


def _show_reports(reports: list[Report]) -> None:
    from minigan.cli.tables import print_table, table
    from minigan.kernels.report import SOURCES

    first = reports[0]
    click.echo(f"{first.arch}, {first.card} with {first.multiprocessors} multiprocessors")
    heads = [head for head, _ in _LEGEND if head]
    shown = table("kernel", *heads, right=heads[:-1], gap=1)
    layer = ""
    for r in reports:
        if r.layer != layer:
            layer = r.layer
            shown.add_row(f"[{layer}]", *[""] * len(heads))
        shown.add_row(
            r.kernel,
            f"{r.registers}" + (f"+{r.spilled}" if r.spilled else ""),
            f"{r.static_shared + r.dynamic_shared}",
            f"{r.occupancy:.0%}",
            "-" if r.ffma_share is None else f"{r.ffma_share:.0%}",
            f"{r.sectors_per_request:.1f}",
            f"{r.bank_conflict:.1f}",
            f"{r.blocks}/{r.multiprocessors}",
            f"{r.bytes_over_minimum:.1f}",
            r.bound,
        )
    print_table(shown)
    for head, meaning in _LEGEND:
        click.echo(f"  {head:7} {meaning}")
    for how, what in SOURCES.items():
        click.echo(f"{how}: {what}")


# -------------------------------------------------------------------------------------------- show


@click.command(short_help="A kernel's source, with counts beside its lines.")
@click.argument("name")
@click.option("--plain", is_flag=True, help="The source alone, which needs no compiler.")
@click.option("--all", "everything", is_flag=True, help="All of the file, not only what ran.")
@click.option("--json", "as_json", is_flag=True, help="The counts of each line as JSON.")
def show(name: str, plain: bool, everything: bool, as_json: bool) -> None:
    """The source of the kernel NAME, with what sim counted beside each line.

    \b
    minigan kernels show conv_tiled
    minigan kernels show conv2d --all | less
    """
    from dataclasses import asdict

    from minigan.cli.progress import working
    from minigan.kernels.catalogue import KERNELS
    from minigan.kernels.signatures import texts_of

    if name not in KERNELS:
        raise Refused(f"{name}: no such kernel; there are {', '.join(KERNELS)}")
    texts = texts_of(KERNELS[name].file)
    if plain:
        click.echo("".join(texts.values()), nl=False)
        return
    case = next(c for c in _cases((name,)) if c.kernel.name == name)
    with working(f"running {name} on sim"):
        counters = case.count()
    if as_json:
        lines = [
            {"file": file, "line": n, **asdict(c)}
            for file in texts
            for n, c in sorted(counters.of(file).items())
        ]
        found = {"kernel": name, "layer": case.layer, "counted_on": "sim", "lines": lines}
        click.echo(json.dumps(found | {"total": asdict(counters.total)}, indent=2))
        return
    entry = KERNELS[name]
    click.echo(f"{name}, {entry.file}, rung {entry.rung}: {entry.computes}")
    click.echo(f"a part of {case.layer}: grid {case.small().grid}, block {case.block}\n")
    listing(counters, texts, everything)
    click.echo(_COUNTED)


def listing(counters: Counters, texts: Mapping[str, str], everything: bool = False) -> None:
    """Lines of source with their counts to the left; lines that did not run near those that did.

    texts: of files, by their names.
    """
    from minigan.kernels.lines import FIGURES

    heads = " ".join(f"{figure.head:>{figure.width}}" for figure in FIGURES)
    for file, text in texts.items():
        click.echo(f"{heads} line  {file if len(texts) > 1 else 'source'}")
        _lines(counters.of(file), text.splitlines(), everything)
        if len(texts) > 1:
            click.echo()
    total = (f"{figure.text(counters.total):>{figure.width}}" for figure in FIGURES)
    click.echo(f"{' '.join(total)}  all\n")
    for figure in FIGURES:
        click.echo(f"  {figure.head:6} {figure.legend}")


def _lines(counts: Mapping[int, Counts], text: list[str], everything: bool) -> None:
    from minigan.kernels.lines import FIGURES

    wanted = set(range(1, len(text) + 1)) if everything else _near(set(counts), text)
    width = shutil.get_terminal_size((140, 24)).columns if sys.stdout.isatty() else 140
    last = 0
    for number in sorted(wanted):
        if last and number > last + 1:
            click.echo()
        figures = [f.text(counts[number]) if number in counts else "" for f in FIGURES]
        beside = " ".join(f"{t:>{f.width}}" for f, t in zip(FIGURES, figures, strict=True))
        beside = f"{beside} {number:>4}  "
        line, room = text[number - 1], max(20, width - len(beside))
        click.echo(beside + line[:room])
        for i in range(room, len(line), room):
            click.echo(" " * len(beside) + line[i : i + room])
        last = number


def _near(ran: set[int], text: list[str], around: int = 2) -> set[int]:
    near = {n for line in ran for n in range(line - around, line + around + 1)}
    return {n for n in near if 1 <= n <= len(text)}


COMMANDS: tuple[Any, ...] = (report, show)
