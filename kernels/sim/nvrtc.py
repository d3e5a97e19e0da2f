"""NVIDIA's run-time compiler through ctypes: CUDA C to PTX, CUBIN and a log. No driver needed."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

# What CuPy passes to NVRTC without telling; -lineinfo makes the PTX name its source lines.
FLAGS = ("-ftz=true", "--std=c++17", "-lineinfo")

ADVICE = 'pip install "nvidia-cuda-nvrtc-cu12==12.9.*"'


class CompilerMissing(RuntimeError):
    """NVRTC is not installed; the message says which line installs it."""


class CompileError(RuntimeError):
    """NVRTC refused the source; the message is its log."""


class Compiled(NamedTuple):
    """code: PTX text in ASCII, or the CUBIN's bytes. log: warnings, and what ptxas reports."""

    code: bytes
    log: str


def compile(
    source: str,
    *,
    arch: str = "sm_80",
    defines: Mapping[str, object] | None = None,
    name: str = "kernel.cu",
    include: Iterable[Path] = (),
    cubin: bool = False,
    options: Iterable[str] = (),
) -> Compiled:
    """Compile CUDA C to PTX, or with `cubin` to machine code for `arch`.

    options: passed on, e.g. "--ptxas-options=-v" puts registers and spills of a CUBIN in the log.
    Raises: CompileError with NVRTC's log; CompilerMissing.
    """
    lib = library()
    target = arch if cubin else arch.replace("sm_", "compute_")
    flags = [*FLAGS, f"-arch={target}", *(f"-I{folder}" for folder in include), *options]
    flags += [f"-D{key}={value}" for key, value in (defines or {}).items()]
    argv = (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])

    program = ctypes.c_void_p()
    _check(lib.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 0, None, None
    ))  # fmt: skip
    try:
        status = lib.nvrtcCompileProgram(program, len(flags), argv)
        log = _fetch(lib, "ProgramLog", program).decode(errors="replace").rstrip("\0\n ")
        if status:
            raise CompileError(f"{name}: NVRTC could not compile it ({' '.join(flags)})\n{log}")
        return Compiled(_fetch(lib, "CUBIN" if cubin else "PTX", program), log)
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def library() -> ctypes.CDLL:
    """libnvrtc: from its own wheel (which CuPy's [ctk] extra brings too), CUDA_PATH or the system.

    Raises: CompilerMissing.
    """
    for path in _candidates():
        try:
            lib = ctypes.CDLL(path)
        except OSError:
            continue
        lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        return lib
    raise CompilerMissing(f"sim needs NVIDIA's compiler NVRTC, which is not installed: {ADVICE}")


def version() -> tuple[int, int]:
    """NVRTC's version, e.g. (12, 9)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def _candidates() -> Iterable[str]:
    folders: list[Path] = []
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        folders += [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    folders += [Path(os.environ[key]) for key in ("CUDA_PATH", "CUDA_HOME") if key in os.environ]
    for folder in folders:
        for pattern in ("lib/libnvrtc.so.*", "lib64/libnvrtc.so.*", "bin/**/nvrtc64_*.dll"):
            found = sorted(folder.glob(pattern), reverse=True)
            yield from (str(path) for path in found if ".alt." not in path.name)
    if system := ctypes.util.find_library("nvrtc"):
        yield system


def _fetch(lib: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(lib, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status:
        raise CompileError(f"NVRTC: {library().nvrtcGetErrorString(status).decode()}")
