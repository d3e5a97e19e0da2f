"""Flush float denormals to zero, as -ftz=true does on a GPU, by the CPU's own mode for it.

The C library's <fenv.h> reads and writes the floating-point environment of this thread:
x86-64: MXCSR at byte 28 of fenv_t, bits FTZ (results) and DAZ (operands). AArch64: FPCR, bit FZ.
Where neither is at hand, denormals are kept: a difference below 1.2e-38.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PLACE_AND_BITS = {
    "x86_64": (28, 1 << 15 | 1 << 6), "aarch64": (0, 1 << 24),
}.get(platform.machine() if sys.platform == "linux" else "")  # fmt: skip


@contextmanager
def flush_denormals() -> Iterator[None]:
    if _PLACE_AND_BITS is None:
        yield
        return
    place, bits = _PLACE_AND_BITS
    libc = ctypes.CDLL(None)
    saved, flushing = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libc.fegetenv(saved)
    libc.fegetenv(flushing)
    word = ctypes.c_uint32.from_buffer(flushing, place)
    word.value |= bits
    libc.fesetenv(flushing)
    try:
        yield
    finally:
        libc.fesetenv(saved)
