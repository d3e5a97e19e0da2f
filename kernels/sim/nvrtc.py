"""NVIDIA's run-time compiler through ctypes: CUDA C to PTX, CUBIN and a log. No driver needed.

PTX is kept in the cache folder (minigan.files.cache_folder), for a kernel takes 0.1 s and more to
compile and a training step has thirty. What cannot be kept or read there is compiled again.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from minigan.files import cache_folder

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
    if cubin or options or "#include" in source:
        return _compile(lib, source, name, flags, cubin)
    key = repr((version(), source, name, flags))
    if (ptx := _kept(key)) is not None:
        return Compiled(ptx, "")
    compiled = _compile(lib, source, name, flags, cubin)
    if not compiled.log:  # a warning is told each time
        _keep(key, compiled.code)
    return compiled


def _compile(lib: ctypes.CDLL, source: str, name: str, flags: list[str], cubin: bool) -> Compiled:
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


# ---- Kept PTX -----------------------------------------------------------------------------------

_MOST_KEPT = 600  # files, of some 50 kB


def _file(key: str) -> Path:
    return cache_folder() / "ptx" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _kept(key: str) -> bytes | None:
    """What was kept under key, if it is there and whole: behind its digest."""
    try:
        digest, _, ptx = _file(key).read_bytes().partition(b"\n")
    except (OSError, RuntimeError):
        return None
    return ptx if digest == hashlib.blake2b(ptx).hexdigest().encode() else None


def _keep(key: str, ptx: bytes) -> None:
    """Keep PTX if the folder can be written; the oldest files make room."""
    file = _file(key)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with suppress(OSError, RuntimeError):  # a home may be unknown
        file.parent.mkdir(parents=True, exist_ok=True)
        files = sorted(file.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in files[: -_MOST_KEPT // 2] if len(files) > _MOST_KEPT else ():
            old.unlink(missing_ok=True)
        temporary.write_bytes(hashlib.blake2b(ptx).hexdigest().encode() + b"\n" + ptx)
        os.replace(temporary, file)


# ---- The library --------------------------------------------------------------------------------


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


@cache
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
