"""The report as one self-contained HTML page, with a roofline and what bounds each kernel."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from minigan.kernels.architectures import ARCHITECTURES
from minigan.kernels.report import SOURCES, Report

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2330; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th { text-align: right; border-bottom: 1px solid #8a94a6; padding: .2rem .45rem;
     vertical-align: bottom; font-weight: 600 }
td { text-align: right; padding: .15rem .5rem; white-space: nowrap }
th:first-child, td:first-child, td:last-child, th:last-child,
th:nth-child(2), td:nth-child(2) { text-align: left }
td:first-child, th:first-child { text-align: right; color: #59647a }
tr.layer td { padding-top: .7rem; color: #59647a; text-align: left }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto } dt { font-weight: 600 }
.note { background: #f3f5f9; padding: .6rem 1rem; border-left: 3px solid #59647a }
"""

PARTS = {
    "issue": "instructions",
    "fma": "FMA\nunits",
    "tensor": "tensor\ncores",
    "shared": "shared\nmemory",
    "l2": "L2",
    "memory": "memory",
    "latency": "latency",
    "launch": "launch",
}
COLOURS = {"product": "#2457a8", "ladder": "#c2571a", "memory": "#3d8b40"}


def page(reports: Sequence[Report]) -> str:
    """The page's HTML; all of one architecture."""
    first = reports[0]
    a = ARCHITECTURES[first.arch]
    where = "".join(f"<dt>{how}</dt><dd>{html.escape(what)}</dd>" for how, what in SOURCES.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>minigan kernels on {first.arch}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body>
<h1>minigan kernels on {first.arch}</h1>
<p>{html.escape(first.card)} stands for the architecture: {a.multiprocessors} multiprocessors at
{a.clock:g} GHz, {a.bandwidth:g} GB/s, {a.peak * a.clock / 1000:.1f} TFLOP/s in float32.</p>
<div class="note"><p>No GPU made any of these figures.</p><dl>{where}</dl></div>
<h2>Figures</h2>
<div class="scroll">{_table(reports)}</div>
<h2>Roofline</h2>
<p>Across: useful operations for each byte that must move. Up: the share of the float32 peak that
the model predicts. Numbers are those of the table. The roof is what memory (the slope) and FMA
units (the flat part) allow.</p>
{_svg(_roofline(reports))}
<h2>What bounds each kernel</h2>
<p>The clock cycles that each part of the card needs, over those of the part that needs the most:
1 is the bound, and what stands near it is the next. Predicted, from counts.</p>
{_svg(_bounds(reports))}
</body></html>
"""


HEADS = (
    "",
    "kernel",
    "registers",
    "spilled",
    "shared: static + dynamic",
    "occupancy",
    "FMA share",
    "sectors / request",
    "bank conflict",
    "blocks / SMs",
    "executed / useful",
    "bytes / minimum",
    "bound",
)


def _table(reports: Sequence[Report]) -> str:
    rows, layer = [], ""
    for number, r in enumerate(reports, 1):
        if r.layer != layer:
            layer = r.layer
            across = f'<td colspan="{len(HEADS) - 1}">{html.escape(layer)}</td>'
            rows.append(f'<tr class="layer"><td></td>{across}</tr>')
        cells = (
            number, r.kernel, r.registers, r.spilled, f"{r.static_shared} + {r.dynamic_shared}",
            f"{r.occupancy:.0%}", "–" if r.ffma_share is None else f"{r.ffma_share:.0%}",
            f"{r.sectors_per_request:.1f}", f"{r.bank_conflict:.2f}",
            f"{r.blocks} / {r.multiprocessors}",
            "–" if r.executed_over_useful is None else f"{r.executed_over_useful:.2f}",
            f"{r.bytes_over_minimum:.1f}", r.explained,
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th>{h}</th>" for h in HEADS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _kind(r: Report) -> str:
    if r.kernel.startswith("conv_"):
        return "ladder"
    return "product" if r.executed_over_useful is not None else "memory"


def _roofline(reports: Sequence[Report]) -> Figure:
    """TF32 is left out: its roof is another."""
    numbered = [(n, r) for n, r in enumerate(reports, 1) if not r.kernel.endswith("TF32")]
    shown = [r for _, r in numbered]
    ridge = ARCHITECTURES[reports[0].arch].ridge
    low = min([0.1, *(r.intensity / 2 for r in shown)])
    high = max([1000.0, *(r.intensity * 4 for r in shown)])
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    x = np.geomspace(low, high, 200)
    axes.loglog(x, 100 * np.minimum(1, x / ridge), color="#1c2330", lw=1.5)
    axes.axvline(ridge, color="#8a94a6", lw=0.8, ls=":")
    axes.annotate(f" {ridge:.1f} FLOP/byte", (ridge, 130), color="#59647a", fontsize=8)
    labels = {"product": "products", "ladder": "the ladder's rungs", "memory": "other kernels"}
    for kind, label in labels.items():
        points = [r for r in shown if _kind(r) == kind]
        axes.scatter(
            [r.intensity for r in points], [100 * r.peak_share for r in points],
            color=COLOURS[kind], s=28, label=label, zorder=3,
        )  # fmt: skip
    _number_points(axes, numbered)
    axes.set_xlabel("useful FLOP for each byte that must move")
    axes.set_ylabel("% of the float32 peak, predicted")
    axes.set_ylim(top=300)
    axes.grid(which="major", color="#e3e7ee", lw=0.7)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _number_points(axes: Any, numbered: Sequence[tuple[int, Report]]) -> None:
    """The numbers of the table beside the points, those of points that lie together in one."""
    groups: list[tuple[float, float, list[int], str]] = []
    for number, r in numbered:
        x, y = np.log10(r.intensity), np.log10(100 * r.peak_share)
        near = next((g for g in groups if abs(g[0] - x) < 0.12 and abs(g[1] - y) < 0.08), None)
        if near:
            near[2].append(number)
        else:
            groups.append((x, y, [number], COLOURS[_kind(r)]))
    for x, y, numbers, colour in groups:
        text = ", ".join(map(str, numbers))
        axes.annotate(
            text, (10**x, 10**y), (6, 0), textcoords="offset points", fontsize=8, va="center",
            color=colour,
        )  # fmt: skip


def _bounds(reports: Sequence[Report]) -> Figure:
    parts = [p for p in PARTS if any(r.cycles.get(p) for r in reports)]
    shares = np.array([[r.cycles[p] / r.cycles[r.bound] for p in parts] for r in reports])
    figure = Figure(figsize=(9, 0.9 + 0.3 * len(reports)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    axes.set_xticks(range(len(parts)), [PARTS[p] for p in parts], fontsize=8)
    axes.xaxis.tick_top()
    names = [f"{r.name}  {n}" for n, r in enumerate(reports, 1)]
    axes.set_yticks(range(len(reports)), names, fontsize=8)
    axes.tick_params(length=0)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            text = f"{share:.2f}" if share >= 0.005 else ""
            colour = "white" if share > 0.7 else "#1c2330"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    options = {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "minigan"}
    with matplotlib.rc_context(options):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]
