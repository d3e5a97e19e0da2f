"""minigan kernels: tools for those who read, check and write CUDA kernels."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minigan.cli.errors import Refused
from minigan.cli.figures import listing, report, show

if TYPE_CHECKING:
    import numpy as np

    from minigan.kernels.sim import Fault, Module
    from minigan.kernels.sim.counters import Counters

_SHOWN = 6  # elements of an array
_TOLD = "Counted on sim, the interpreter of the compiler's PTX: no GPU timing."


@click.group(short_help="Read, check, run and count the CUDA kernels.", invoke_without_command=True)
@click.pass_context
def kernels(context: click.Context) -> None:
    """Tools for readers and writers of CUDA kernels.

    They work without a GPU: sim runs what NVIDIA's compiler makes of the kernels.

    \b
    minigan kernels list
    minigan kernels show conv_tiled              the source, with counts beside its lines
    minigan kernels check                        every kernel against the reference
    minigan kernels run mine.cu add --grid 4 --block 256 --arg x='randn(1024)' ...
    minigan kernels report --arch sm_90          registers, occupancy, memory, what bounds each
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="As JSON.")(command)


# ----------------------------------------------------------------------------------- list and check


@kernels.command("list", short_help="Name, file, rung and job of each kernel.")
@_json_option
def list_(as_json: bool) -> None:
    """List the kernels: name, file, rung of the ladder, and what each computes."""
    from minigan.cli.tables import print_table, table
    from minigan.kernels.catalogue import KERNELS

    if as_json:
        rows = [{**entry._asdict(), "file": entry.file} for entry in KERNELS.values()]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    shown = table("kernel", "file", "rung", "computes")
    for entry in KERNELS.values():
        shown.add_row(entry.name, entry.file, entry.rung, entry.computes)
    print_table(shown)


@kernels.command(short_help="Compare every kernel with the reference.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--device",
    type=click.Choice(["sim", "cuda"]),
    help="Default: cuda if there is a GPU, else sim.",
)
@_json_option
def check(names: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Compare every kernel, forward and gradient, with the reference in float64.

    NAME: kernels or functions to check; default all. The tolerance is a rule: twice the error of
    the reference in float32, plus a few roundings of the largest result. On sim, every launch is
    also searched for races, strays and reads of unwritten memory.

    Exit code 0 if all agree, else 1.

    \b
    minigan kernels check
    minigan kernels check conv2d_dgrad adam --device sim
    """
    from dataclasses import asdict

    from minigan.array import check_device
    from minigan.cli.progress import working
    from minigan.kernels import check as checking
    from minigan.kernels import sim

    device = check_device(device) if device else _best_device()
    if device == "sim":
        sim.nvrtc.library()  # raises, if it is missing, what to install
    chosen = _chosen_checks(names, device)
    outcomes = []
    with working(f"{len(chosen)} checks on {device}"):
        for one in chosen:
            outcomes.append(checking.run(one, device))
    if as_json:
        found = [{**asdict(o), "good": o.good} for o in outcomes]
        found = [{k: None if v != v else v for k, v in o.items()} for o in found]  # NaN
        click.echo(json.dumps({"device": device, "checks": found}, indent=2, ensure_ascii=False))
    else:
        _show_outcomes(outcomes, device)
    click.get_current_context().exit(not all(o.good for o in outcomes))


def _best_device() -> str:
    from minigan.array import DeviceError, check_device

    try:
        return check_device("cuda")
    except DeviceError:
        return "sim"


def _has_tf32() -> bool:
    """Whether the first GPU has compute capability 8.0 or above."""
    from minigan.array import gpus

    match = re.search(r"compute capability (\d+)", gpus()[0])
    return match is not None and int(match[1]) >= 8


def _chosen_checks(names: tuple[str, ...], device: str) -> list[Any]:
    from minigan.kernels import check as checking

    everything = list(checking.checks(tf32=device == "sim" or _has_tf32()))
    known = {name for c in everything for name in (c.name, *c.kernels)}
    for name in names:
        if name not in known:
            raise Refused(f"{name}: no such kernel; there are {', '.join(sorted(known))}")
    return [c for c in everything if not names or {c.name, *c.kernels} & set(names)]


def _show_outcomes(outcomes: list[Any], device: str) -> None:
    from minigan.cli.tables import print_table, table

    shown = table("", "function", "case", "error", "tolerance", right=("error",), gap=1)
    for o in outcomes:
        figures = ("-", "-") if o.failure else (f"{o.error:.1e}", f"{o.tolerance:.1e}")
        mark = "ok" if o.good else "!!"
        shown.add_row(mark, o.name, o.what, *figures)
    print_table(shown)
    bad = [o for o in outcomes if not o.good]
    for o in bad:
        reason = o.failure or f"error {o.error:.3g} is above the tolerance {o.tolerance:.3g}"
        click.echo(f"{o.name}, {o.what}: {reason}", err=True)
    click.echo(
        f"{len(outcomes) - len(bad)} of {len(outcomes)} agree with the reference, on {device}"
    )


# --------------------------------------------------------------------------------------------- run


@kernels.command(short_help="Run your own kernel on sim.")
@click.argument("file", metavar="FILE.cu")
@click.argument("name", required=False)
@click.option("--arg", "args", multiple=True, metavar="NAME=VALUE", help="See above; repeatable.")
@click.option("--grid", required=True, metavar="X[,Y[,Z]]", help="Blocks.")
@click.option("--block", required=True, metavar="X[,Y[,Z]]", help="Threads of a block.")
@click.option("--shared", type=click.IntRange(0), default=0, help="Dynamic shared memory, bytes.")
@click.option("--define", "defines", multiple=True, metavar="KEY=VALUE", help="As nvcc's -D.")
@click.option("--arch", default="sm_80", show_default=True, help="What to compile for.")
@click.option("--seed", default=0, show_default=True, help="Of randn and rand.")
@click.option("--save", metavar="FILE.npz", help="Save all arrays as they are afterwards.")
@_json_option
def run(
    file: str,
    name: str | None,
    args: tuple[str, ...],
    grid: str,
    block: str,
    shared: int,
    defines: tuple[str, ...],
    arch: str,
    seed: int,
    save: str | None,
    as_json: bool,
) -> None:
    """Run the kernel NAME of FILE.cu on sim, with every check, and show what it did.

    NAME may be left out if the file has one kernel. Each parameter takes an --arg: a number, an
    expression of numbers and earlier arguments, or an array by its shape: randn(1024), rand,
    zeros, ones, full(1024, 7), arange(1024), or empty(1024), which must not be read before it is
    written.

    \b
    minigan kernels run add.cu add --grid 4 --block 256 \\
        --arg n=1000 --arg x='randn(n)' --arg y='zeros(n)'

    Exit codes: 0 it ran, 1 a fault was found (a race, a stray access...), 2 bad input.
    """
    from minigan.kernels import arguments, sim

    try:
        module, name = _compile(Path(file), name, defines, arch)
        values = _arguments(module, name, args, seed)
        sizes = arguments.sizes("--grid", grid), arguments.sizes("--block", block)
    except arguments.ArgumentError as error:
        raise Refused(f"{error}") from None
    before = {k: v.copy() for k, v in values.items() if hasattr(v, "shape")}
    try:
        result = module.launch(name, *sizes, *values.values(), shared=shared, counters=True)
    except sim.Fault as fault:
        _explain(fault, Path(file).read_text(encoding="utf-8"), as_json)
        click.get_current_context().exit(1)
    except (TypeError, ValueError) as error:
        raise Refused(f"{error}") from None
    if save:
        import numpy as np

        arrays: dict[str, Any] = {k: np.asarray(values[k]) for k in before}
        np.savez(save, **arrays)
    assert result.counters is not None
    if as_json:
        click.echo(json.dumps(_as_json(name, values, before, result.counters), indent=2))
        return
    _show_arrays(values, before)
    click.echo()
    texts = {Path(file).resolve().name: Path(file).read_text(encoding="utf-8")}
    listing(result.counters, texts)
    click.echo(f"no fault found. {_TOLD}")


def _compile(
    file: Path, name: str | None, defines: tuple[str, ...], arch: str
) -> tuple[Module, str]:
    """The module of a file, and the name of the kernel in it.   Raises: Refused."""
    from minigan.kernels import sim

    source = file.read_text(encoding="utf-8")
    kernels = re.findall(r"__global__[^;{(]*?(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(", source)
    if name is None and len(kernels) != 1:
        raise Refused(f"{file}: which kernel? It has {', '.join(kernels) or 'none'}")
    name = name or kernels[0]
    if name not in kernels:
        raise Refused(f"{file}: no kernel {name}; it has {', '.join(kernels) or 'none'}")
    if re.search(rf"template\s*<[^;{{]*>\s*__global__[^;{{]*\b{re.escape(name)}\s*\(", source):
        raise Refused(f"{file}: {name} is a template: write its types out, so that it is compiled")
    given: dict[str, str] = {}
    for define in defines:
        key, equals, value = define.partition("=")
        given[key] = value if equals else "1"
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise Refused(f"--arch {arch}: give it like sm_80")
    try:
        module = sim.Module(_plain_names(source, name), str(file.resolve()), arch, given)
    except sim.CompileError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "")
        first = first.replace(str(file.resolve()), str(file))
        if "cannot open source" in first or "<<<" in first:
            first += "; give the kernels alone, without #include and main: CUDA's own are known"
        more = sum("error:" in line for line in lines) - 1
        raise Refused(
            f"{file} does not compile: {first}" + (f" (and {more} more)" if more > 0 else "")
        ) from None
    except sim.ParseError as error:
        raise Refused(f"{file}: {error}") from None
    return module, name


def _plain_names(source: str, name: str) -> str:
    """The source with extern "C" before the kernel, unless it has that or is a template: without
    it the compiler would give the kernel a name that tells of its parameters."""
    match = re.search(rf"__global__(?=[^;{{]*\b{re.escape(name)}\s*\()", source)
    if match is None or re.search(r'(extern\s+"C"|>)\s*$', source[: match.start()]):
        return source
    return f'{source[: match.start()]}extern "C" {source[match.start() :]}'


def _arguments(module: Module, name: str, args: tuple[str, ...], seed: int) -> dict[str, Any]:
    """A value for each parameter, by name, in the order of the kernel."""
    import numpy as np

    from minigan.kernels import arguments

    parameters = {p.name: p for p in module.signatures.get(name, [])}
    wanted = ", ".join(f"{p.pointee or ''}{'* ' if p.pointer else ''}{p.name}".strip()
                       for p in parameters.values())  # fmt: skip
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for given in args:
        key, equals, text = given.partition("=")
        if not equals or not text:
            raise Refused(f"--arg {given}: give it as NAME=VALUE, like --arg n=1024")
        if key not in parameters:
            raise Refused(f"--arg {key}: {name} has no such parameter; it takes ({wanted})")
        if key in values:
            raise Refused(f"--arg {key}: given twice")
        dtype = parameters[key].pointee or "float32"
        values[key] = arguments.parse(text, values, np.dtype(dtype), rng)
    if missing := [p for p in parameters if p not in values]:
        example = missing[0]
        shape = "randn(1024)" if parameters[example].pointer else "1024"
        raise Refused(
            f"{name} takes ({wanted}): give {', '.join(missing)} too, "
            f"like --arg {example}='{shape}'"
        )
    return {key: values[key] for key in parameters}


def _explain(fault: Fault, source: str, as_json: bool) -> None:
    """Say what went wrong, for someone who meets it for the first time."""
    from minigan.kernels.explain import excerpt, lesson, other_lines

    why, mend = lesson(fault)
    detail = str(fault).partition(": ")[2].partition("\n")[2]
    detail = detail.partition(": ")[2]
    if as_json:
        found = {
            "kind": fault.kind,
            "line": fault.line,
            "block": fault.block,
            "thread": fault.thread,
            "detail": detail,
            "why": why,
            "mend": mend,
        }
        click.echo(json.dumps({"kernel": fault.kernel, "fault": found}, indent=2))
        return
    block, thread = (_index(i) for i in (fault.block, fault.thread))
    click.echo(
        f"{fault.kind}: kernel {fault.kernel}, line {fault.line}, block {block}, thread {thread}\n"
    )
    last = 0
    for number, text, marked in excerpt(source, [fault.line, *other_lines(fault)]):
        if last and number > last + 1:
            click.echo("      ...")
        click.echo(f"{'>' if marked else ' '} {number:>4}  {text}")
        last = number
    parts = [("What happened", f"thread {thread} of block {block} {detail}.")]
    if why:
        parts += [("Why it is a bug", why), ("What to do", mend)]
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    for title, text in parts:
        body = textwrap.fill(text, width, initial_indent="  ", subsequent_indent="  ")
        click.echo(f"\n{title}\n{body}")


def _index(place: tuple[int, ...]) -> str:
    """5 for (5,0,0), else (x, y, z)."""
    return str(place[0]) if not any(place[1:]) else f"({', '.join(map(str, place))})"


def _show_arrays(values: dict[str, Any], before: dict[str, np.ndarray]) -> None:
    import numpy as np

    from minigan.cli.tables import print_table, table

    shown = table("argument", "type", "values afterwards")
    for name, value in values.items():
        if name not in before:
            shown.add_row(name, "null" if value is None else "number", f"{value}")
            continue
        flat = np.asarray(value).reshape(-1)
        text = " ".join(f"{v:.4g}" for v in flat[:_SHOWN]) + (" ..." if flat.size > _SHOWN else "")
        same = np.array_equal(before[name], value, equal_nan=value.dtype.kind == "f")
        what = f"{value.dtype} {'×'.join(map(str, value.shape))}"
        shown.add_row(name, what, text + (" (unchanged)" if same else ""))
    print_table(shown)


def _as_json(
    name: str, values: dict[str, Any], before: dict[str, np.ndarray], counters: Counters
) -> dict[str, Any]:
    from dataclasses import asdict

    import numpy as np

    arrays = {k: np.asarray(values[k]).tolist() if k in before else values[k] for k in values}
    lines = [{"line": n, **asdict(c)} for (_, n), c in sorted(counters.lines.items())]
    total = asdict(counters.total)
    return {"kernel": name, "fault": None, "arguments": arrays, "lines": lines, "total": total}


for command in (show, report):
    kernels.add_command(command)
