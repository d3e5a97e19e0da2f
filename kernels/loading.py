"""The CPU's compiled loops, imported and compiled: when they are first needed, or before.

Numba takes a second to import, and compiles at the first run on a machine; who never computes on a
CPU pays for neither.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from minigan.kernels import threads

loops: Any = None  # the module of compiled loops, once it is needed; False if there is none
gemm: Any = None  # those of products
convolution: Any = None  # convolutions
winograd: Any = None  # and those with fewer multiplications


def load() -> bool:
    """Import the loops. Returns whether they work here; if not, says so once."""
    global loops, gemm, convolution, winograd, _seconds
    if loops is None:
        advice = "pip install --upgrade numba"
        try:
            import numba

            if numba.config.DISABLE_JIT:
                advice = "unset NUMBA_DISABLE_JIT"
                raise RuntimeError("its compiler is off")
            from minigan.kernels import compiled, convolution, gemm, winograd

            started = time.perf_counter()
            compiled.column_sums.compile()  # a small one, to see
            _seconds = time.perf_counter() - started
            _keep_pages()
            loops = compiled
        except Exception as error:
            loops = False
            warnings.warn(
                f"CPU kernels run on plain NumPy, several times slower, since Numba does not work "
                f"here ({type(error).__name__}: {error}): {advice}",
                stacklevel=2,
            )
    return loops is not False


def warm_up(
    needed: Iterable[Any] | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Compile jobs, or load what an earlier run left of them; else that happens at their first use.

    needed: those that `threads.planning` has listed; by default all.
    progress: called with (jobs that are ready, jobs in all) after each.
    """
    global _seconds
    if not load():
        return
    from minigan.kernels import jobs

    listed = sorted(jobs.every() if needed is None else dict.fromkeys(needed), key=_place)
    helper, collecting = None, gc.isenabled()
    try:
        gc.disable()  # a compiler makes many objects, and no cycles worth looking for meanwhile
        for i, job in enumerate(listed):
            new, _seconds = _seconds > _LOADING and not jobs.uncached, 0.0  # the one before
            if new and helper is None and threads.count() > 1 and i + 3 < len(listed):
                helper = _from_the_end([each.name for each in listed])
            started = time.perf_counter()
            job.compile()
            _seconds = time.perf_counter() - started
            if progress is not None:
                progress(i + 1, len(listed))
    finally:
        _seconds = 0.0
        if collecting:
            gc.enable()
        if helper is not None:
            helper.kill()  # what it was at is compiled; files are moved into place when whole
            helper.wait()


def _place(job: Any) -> int:
    """In what order to compile. Jobs of one file share functions, so that one process compiles
    them all; the small ones are in the middle, where two processes may meet at the same."""
    files = "winograd", "compiled", "gemm", "convolution"
    return files.index(job.kernel.__module__.rpartition(".")[2])


_seconds = 0.0  # that the last job took
_LOADING = 0.15  # seconds that loading a job never takes, and compiling one mostly does
_COMPILE = """
import os, sys
sys.path[:] = sys.argv[1].split("|")
from minigan.kernels import jobs, loading
loading.load()
byname = {job.name: job for job in jobs.every()}
for name in reversed(sys.argv[3:]):
    if os.getppid() == int(sys.argv[2]):  # else it was killed, and could not stop this one
        byname[name].compile()
"""


def _from_the_end(names: list[str]) -> subprocess.Popen[bytes] | None:
    """Another process, that compiles the same jobs in reverse order until it is stopped. What it
    leaves for the next run, this one finds: Numba compiles one function at a time in a process.

    None where this Python cannot be started again; if that one fails, this one compiles all."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    path = "|".join(str(folder) for folder in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _COMPILE, path, str(os.getpid()), *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _keep_pages() -> None:
    """Have the C library keep the memory of freed arrays instead of giving it back to the system.

    A step frees what the next one allocates; fetching new pages took a quarter of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its greatest
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
