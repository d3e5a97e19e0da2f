"""run(): compile a CUDA source, lay out its arguments as a GPU would, and run it on sim."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from . import emit, nvrtc, parser
from .checks import Checks, NotQuiet
from .counters import Counters
from .denormals import flush_denormals
from .machine import Launch, Machine
from .memory import GlobalMemory, Unwritten
from .program import Program
from .ptx import Param

POINTEES = {
    "float": "float32", "float2": "float32", "float3": "float32", "float4": "float32",
    "double": "float64", "double2": "float64", "int": "int32", "int2": "int32", "int4": "int32",
    "unsigned": "uint32", "unsigned int": "uint32", "uint2": "uint32", "uint4": "uint32",
    "long long": "int64", "unsigned long long": "uint64", "short": "int16",
    "unsigned short": "uint16", "signed char": "int8", "unsigned char": "uint8", "bool": "bool",
}  # fmt: skip

MAX_THREADS = 1024  # a block; its limits by axis, and the grid's
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_SHARED_STATIC = 48 << 10  # bytes
MAX_SHARED = {"sm_70": 96, "sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_89": 99,
              "sm_90": 227, "sm_100": 227, "sm_120": 99}  # KiB a block  # fmt: skip

Extents = tuple[int, int, int]


@dataclass
class Result:
    """What a launch tells. counters: None unless they were asked for."""

    kernel: str
    counters: Counters | None = None


class Module:
    """A compiled source. kernels: their names."""

    def __init__(self, source: str, name: str, arch: str, defines: Mapping[str, Any]) -> None:
        folder = [Path(name).parent] if name != "kernel.cu" else []
        compiled = nvrtc.compile(source, arch=arch, defines=defines, name=name, include=folder)
        self.ptx = compiled.code.rstrip(b"\0").decode()
        self.log = compiled.log
        self.parsed = parser.parse(self.ptx)
        self.kernels = self.parsed.kernels
        self.signatures = {key: signature(source, key) for key in self.kernels}
        self._programs: dict[str, Program] = {}
        self.name, self.arch = name, arch
        own = lines_by_file(source, Path(name).name)
        paths = (path for path in self.parsed.files.values() if Path(path).name in own)
        self._lines = {path: own[Path(path).name] for path in paths}

    def program(self, name: str) -> Program:
        """A kernel made ready to run. Raises: ParseError, ValueError."""
        if name not in self.kernels:
            known = ", ".join(self.kernels) or "none"
            raise ValueError(
                f'{name}: no such kernel in this source; it has: {known} (extern "C"?)'
            )
        if name not in self._programs:
            self._programs[name] = Program(emit.kernel(self.parsed, name))
        return self._programs[name]

    def source_line(self, file: int, line: int) -> str:
        """The text of a line of the CUDA source, stripped; empty if it cannot be found."""
        path = self.parsed.files.get(file, "")
        if path not in self._lines:
            found = Path(path)
            self._lines[path] = found.read_text().splitlines() if found.is_file() else []
        lines = self._lines[path]
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""

    def describe(self, file: int, line: int) -> str:
        """``line 7: `its text` ``, and of which file if that is an included one."""
        path = Path(self.parsed.files.get(file, ""))
        of = "" if path.name == Path(self.name).name else f" of {path.name}"
        return f"line {line}{of}: `{self.source_line(file, line)}`"

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *args: Any,
        shared: int = 0,
        checks: bool = True,
        counters: bool = False,
    ) -> Result:
        """Run a kernel; see run()."""
        program = self.program(name)
        grid3, block3 = extents("grid", grid), extents("block", block)
        self._check_limits(name, grid3, block3, program.kernel.shared_static, shared)
        if math.prod(grid3) == 0:
            return Result(name)
        declared = self.signatures[name]
        while True:
            params, memory = lay_out(name, program, declared, args, self.parsed.statics)
            launch = Launch(program, grid3, block3, params, memory, shared, self.describe)
            if counters:
                launch.counters = Counters(self.parsed.files)
            if checks:
                launch.checks = Checks(memory, program, math.prod(grid3))
            try:
                with np.errstate(all="ignore"), flush_denormals():
                    Machine(launch).run()
                break
            except NotQuiet:  # now the checks know one more array that is written
                continue
        memory.copy_out()
        if launch.checks:
            launch.checks.finish()
        else:
            forget_unwritten(args)
        return Result(name, launch.counters)

    def _check_limits(
        self, name: str, grid: Extents, block: Extents, static: int, dynamic: int
    ) -> None:
        """What a GPU would refuse to launch. Raises: ValueError."""
        threads = math.prod(block)
        if not 0 < threads <= MAX_THREADS:
            raise ValueError(f"{name}: block {block} has {threads} threads, not 1 .. {MAX_THREADS}")
        for what, given, limits in (("block", block, MAX_BLOCK), ("grid", grid, MAX_GRID)):
            if any(n > limit for n, limit in zip(given, limits, strict=True)):
                raise ValueError(f"{name}: {what} {given} exceeds a GPU's limits {limits}")
        if static > MAX_SHARED_STATIC:
            raise ValueError(
                f"{name}: {static} bytes of static shared memory, of which a kernel may have "
                f"{MAX_SHARED_STATIC}: make it extern __shared__ and pass shared="
            )
        limit = MAX_SHARED.get(self.arch, 227) << 10
        if static + dynamic > limit:
            raise ValueError(
                f"{name}: {static} + {dynamic} bytes of shared memory exceed the {limit} of a "
                f"block on {self.arch}"
            )


def run(
    source: str | Path,
    name: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: Any,
    defines: Mapping[str, Any] | None = None,
    arch: str = "sm_80",
    shared: int = 0,
    checks: bool = True,
    counters: bool = False,
) -> Result:
    """Compile `source` (CUDA C, or the path of a .cu file) and launch its kernel `name`.

    args: one for each parameter. An array is passed as a pointer to its data and changed in
    place; None is a null pointer; a scalar is cast to the parameter's type; a struct is bytes.
    shared: bytes of dynamic shared memory.

    Raises: Fault with the source line, block and thread; CompileError; CompilerMissing;
    ParseError; TypeError or ValueError that names kernel and parameter.
    """
    module = load(source, defines=defines, arch=arch)
    return module.launch(name, grid, block, *args, shared=shared, checks=checks, counters=counters)


def load(
    source: str | Path,
    *,
    defines: Mapping[str, Any] | None = None,
    arch: str = "sm_80",
    name: str = "kernel.cu",
) -> Module:
    """The compiled and parsed module of a source; the same again for the same arguments.

    name: of a source that is no path, in messages.
    """
    if isinstance(source, Path) or (source.endswith(".cu") and "\n" not in source):
        name = str(Path(source).resolve())
        source = Path(source).read_text(encoding="utf-8")
    return _load(source, name, arch, tuple(sorted((defines or {}).items())))


@lru_cache(maxsize=256)
def _load(source: str, name: str, arch: str, defines: tuple[tuple[str, Any], ...]) -> Module:
    return Module(source, name, arch, dict(defines))


def empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array that counts as unwritten: a kernel that reads it before one wrote it faults."""
    array = np.zeros(shape, dtype).view(Unwritten)
    array.unwritten = np.ones(array.nbytes, bool)
    return array


def forget_unwritten(args: tuple[Any, ...]) -> None:
    """Nobody has watched what was written, so all of it may have been."""
    for array in args:
        if isinstance(array, Unwritten):
            array.unwritten = None


def lines_by_file(source: str, name: str) -> dict[str, list[str]]:
    """The lines of a source by the files that they come from, as `#line 1 "FILE"` says."""
    files: dict[str, list[str]] = {name: []}
    for line in source.splitlines():
        if directive := re.match(r'\s*#\s*line\s+(\d+)(?:\s+"(.*)")?', line):
            number, name = int(directive[1]), directive[2] or name
            files[name] = (files.get(name, []) + [""] * number)[: number - 1]
        else:
            files[name].append(line)
    return files


def extents(what: str, value: int | tuple[int, ...]) -> Extents:
    """(x, y, z) of a grid or block."""
    given = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    if not 1 <= len(given) <= 3 or any(int(n) != n or n < 0 for n in given):
        raise ValueError(f"{what} must be one to three integers ≥ 0, not {value!r}")
    x, y, z = (*(int(n) for n in given), 1, 1)[:3]
    return x, y, z


@dataclass
class Parameter:
    """A parameter as the CUDA source declares it. pointee: NumPy's name of what it points at."""

    name: str
    pointer: bool
    pointee: str | None


def signature(source: str, kernel: str) -> list[Parameter]:
    """The parameters of a kernel by its declaration in the source; [] if it cannot be read."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.S)
    match = re.search(rf"\b{re.escape(kernel)}\s*\(([^)]*)\)\s*\{{", text)
    if not match:
        return []
    parameters = []
    for declaration in filter(None, (part.strip() for part in match[1].split(","))):
        words = re.findall(r"\w+", declaration)
        pointer = "*" in declaration or "[" in declaration
        kind = " ".join(
            w for w in words[:-1] if w not in ("const", "volatile", "restrict", "__restrict__")
        )
        parameters.append(Parameter(words[-1], pointer, POINTEES.get(kind) if pointer else None))
    return parameters


def lay_out(
    kernel: str, program: Program, declared: list[Parameter], args: tuple[Any, ...], statics: Any
) -> tuple[np.ndarray, GlobalMemory]:
    """The bytes of the parameters, and the global memory that holds the arrays."""
    params = program.kernel.params
    if len(args) != len(params):
        raise TypeError(f"{kernel} takes {len(params)} arguments but {len(args)} were given")
    if len(declared) != len(params):
        declared = [Parameter(f"argument {i}", False, None) for i in range(len(params))]
    arrays: dict[str, np.ndarray] = {}
    for param, known, value in zip(params, declared, args, strict=True):
        if isinstance(value, np.ndarray):
            check_array(kernel, param, known, value)
            arrays[known.name] = value
        elif known.pointer and value is not None:
            raise TypeError(
                f"{kernel}: {known.name} is a pointer and takes a NumPy array, "
                f"not {type(value).__name__}"
            )
    memory = GlobalMemory(arrays, statics)
    size = max((param.offset + param.size for param in params), default=0)
    block = np.zeros(-(-size // 4) * 4, np.uint8)
    for param, known, value in zip(params, declared, args, strict=True):
        data = encode(kernel, param, known, memory.addresses.get(known.name, value))
        block[param.offset : param.offset + param.size] = np.frombuffer(data, np.uint8)
    return block, memory


def check_array(kernel: str, param: Param, known: Parameter, value: np.ndarray) -> None:
    if param.size != 8 or param.type.startswith("f"):
        raise TypeError(f"{kernel}: {known.name} is not a pointer but was given an array")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{kernel}: {known.name} must be C-contiguous: shape {value.shape}, strides "
            f"{value.strides}; pass np.ascontiguousarray of it"
        )
    if known.pointee and value.dtype != known.pointee:
        raise TypeError(
            f"{kernel}: {known.name} points at {known.pointee} but was given {value.dtype}"
        )


def encode(kernel: str, param: Param, known: Parameter, value: Any) -> bytes:
    """A scalar, address or struct as the bytes that the parameter takes."""
    if param.type == "b8":
        data = bytes(value) if not isinstance(value, (bytes, np.void)) else value
        data = data.tobytes() if isinstance(data, np.void) else data
        if len(data) != param.size:
            raise TypeError(
                f"{kernel}: {known.name} takes {param.size} bytes but was given {len(data)}"
            )
        return data
    if value is None:
        value = 0
    if not isinstance(value, (bool, int, float, np.number, np.bool_)):
        raise TypeError(f"{kernel}: {known.name} takes a number, not {type(value).__name__}")
    if param.type.startswith("f") and param.size in (4, 8):
        return np.array(value, f"<f{param.size}").tobytes()
    if int(value) != value:
        raise TypeError(f"{kernel}: {known.name} takes an integer, not {value!r}")
    width = 8 * param.size
    if not -(2 ** (width - 1)) <= value < 2**width:
        raise ValueError(f"{kernel}: {known.name} takes {width} bits, which {value} exceeds")
    return (int(value) % 2**width).to_bytes(param.size, "little")
