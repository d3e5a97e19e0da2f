"""What the compiler made of a kernel: registers, spills, shared memory, and its hot loop."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from minigan.kernels.cuda import Kernel
from minigan.kernels.signatures import FOLDER, signatures, source_of
from minigan.kernels.sim import emit, nvrtc, parser


class Code(NamedTuple):
    """Of one kernel. registers: of a thread. spilled: bytes a thread. shared: static, bytes."""

    registers: int
    spilled: int
    shared: int


@lru_cache(maxsize=1024)
def _ptxas(file: str, defines: tuple[tuple[str, Any], ...], arch: str) -> dict[str, Code]:
    compiled = nvrtc.compile(
        source_of(file),
        arch=arch,
        defines=dict(defines),
        name=file,
        cubin=True,
        options=["--ptxas-options=-v"],
    )
    return parse_log(compiled.log)


def parse_log(log: str) -> dict[str, Code]:
    """What `ptxas -v` says of each kernel."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.partition("'")[0]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        if used is None or spills is None:
            raise ValueError(f"{name}: cannot read what ptxas says: {part!r}")
        spilled = int(spills[1]) + int(spills[2])
        found[name] = Code(int(used[1]), spilled, int(shared[1]) if shared else 0)
    return found


def code_of(kernel: Kernel, arch: str) -> Code:
    """Raises: CompileError, CompilerMissing."""
    return _ptxas(signatures()[kernel.name].file, kernel.defines, arch)[kernel.name]


class Loop(NamedTuple):
    """The loop that does the work: its instructions in PTX by name. lines: of the source, of it and
    of its twins for other threads, as (file, number)."""

    instructions: Counter[str]
    lines: frozenset[tuple[str, int]]

    @property
    def size(self) -> int:
        return self.instructions.total()

    @property
    def ffma_share(self) -> float:
        """Share of float32 FMAs among the instructions, 0 .. 1."""
        return self.instructions["fma.f32"] / self.size if self.size else 0.0


@lru_cache(maxsize=1024)
def _parsed(file: str, defines: tuple[tuple[str, Any], ...], arch: str) -> parser.Module:
    path = FOLDER / file
    compiled = nvrtc.compile(source_of(file), arch=arch, defines=dict(defines), name=str(path))
    return parser.parse(compiled.code.rstrip(b"\0").decode())


@lru_cache(maxsize=1024)
def hot_loop(kernel: Kernel, arch: str) -> Loop:
    """The innermost loop with the arithmetic; all of a kernel that has no loop.

    In PTX, where a backward branch ends a loop; ptxas may still change its instructions. Where the
    compiler made twins of a loop, for threads inside and outside of a guard, it is the first.
    """
    module = _parsed(signatures()[kernel.name].file, kernel.defines, arch)
    emitted = emit.kernel(module, kernel.name)
    loops = [
        (emitted.labels[op.sources[-1].name], op.pc)
        for op in emitted.ops
        if op.name == "bra" and emitted.labels[op.sources[-1].name] <= op.pc
    ]
    innermost = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]
    bodies = [emitted.ops[first : last + 1] for first, last in innermost] or [emitted.ops]

    def weight(body: list[Any]) -> int:
        return 1000 * sum(_kind(op) in ("fma.f32", "mma") for op in body) + len(body)

    most = max(map(weight, bodies))
    twins = [body for body in bodies if 2 * weight(body) >= most]
    names = {number: Path(path).name for number, path in module.files.items()}
    lines = frozenset((names.get(op.file, ""), op.line) for body in twins for op in body)
    return Loop(Counter(map(_kind, twins[0])), lines)


def _kind(op: Any) -> str:
    return f"{op.name}.f32" if op.name == "fma" and "f32" in op.mods else op.name
