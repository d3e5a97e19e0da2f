"""float32 by every rounding mode."""

from __future__ import annotations

import numpy as np

from .opcodes import F32, F64, Value
from .ptx import Op


def rounding(op: Op) -> str:
    return next((mod for mod in op.mods if mod in ("rz", "rm", "rp")), "rn")


def to_f32(x: Value, mode: str = "rn", rest: Value = 0.0) -> Value:
    """float64 -> float32 by the rounding `mode`. rest: what x itself was rounded by, if it was."""
    y = x.astype(F32)
    if mode == "rn":
        return y
    error = (x - y.astype(F64)) + rest  # > 0: y is too small
    down = np.where(error < 0, np.nextafter(y, F32.type(-np.inf)), y)
    up = np.where(error > 0, np.nextafter(y, F32.type(np.inf)), y)
    y = down if mode == "rm" else up if mode == "rp" else np.where(x > 0, down, up)
    return y * F32.type(1)  # flushes the denormal next to 0


def two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b = s + e exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Value, b: Value) -> tuple[Value, Value]:
    """a · b = p + e exactly, in float64 (Dekker)."""
    p = a * b
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _halves(a: Value) -> tuple[Value, Value]:
    c = a * 134217729.0  # 2^27 + 1
    high = c - (c - a)
    return high, a - high


def saturate(op: Op, y: Value) -> Value:
    """.sat of a float: clamp to 0 .. 1, NaN to 0."""
    return np.nan_to_num(np.clip(y, 0, 1), nan=0) if "sat" in op.mods else y
