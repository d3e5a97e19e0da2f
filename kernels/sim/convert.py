"""Moves, conversions, and float32 by every rounding mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from .opcodes import DTYPES, F16, F32, F64, I32, I64, U16, U32, UNSIGNED, Value, opcode
from .ptx import Op
from .rounding import rounding, saturate, to_f32

# --- moving and converting ---------------------------------------------------------------------


@opcode("mov", types="?")
def mov(op: Op, *parts: Value) -> Value:
    """Copy; pack {a, b} into one wide register, lowest first; or unpack it into {a, b}."""
    if len(parts) > 1:
        width = op.dtype.itemsize // len(parts)
        wide = UNSIGNED[op.dtype.itemsize]
        result = wide.type(0)
        for i, part in enumerate(parts):
            part = part.view(UNSIGNED[part.dtype.itemsize]).astype(wide)
            result = result | part << wide.type(8 * width * i)
        return result
    if len(op.dests) > 1:
        width = op.dtype.itemsize // len(op.dests)
        wide, narrow = parts[0].view(UNSIGNED[op.dtype.itemsize]), UNSIGNED[width]
        places = (wide.dtype.type(8 * width * i) for i in range(len(op.dests)))
        return tuple((wide >> place).astype(narrow) for place in places)
    return parts[0]


ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@opcode("cvt")
def cvt(op: Op, *sources: Value) -> Value:
    target_name, source_name = op.types[-2:]
    if len(sources) > 1 or "bf16" in (target_name, source_name):
        return _cvt_half(target_name, source_name, *sources)
    a, target = sources[0], DTYPES[target_name]
    if target_name == "tf32":
        return (a.view(U32) + U32.type(1 << 12)) & ~U32.type((1 << 13) - 1)
    integral = next((f for mod, f in ROUND_TO_INTEGER.items() if mod in op.mods), None)
    if a.dtype.kind == "f" and target.kind != "f":
        return _float_to_int((integral or np.trunc)(a.astype(F64)), target)
    if a.dtype.kind == "f":
        a = integral(a) if integral else a
        if target == F32 and a.dtype == F64:
            return saturate(op, to_f32(a, rounding(op)))
        return saturate(op, a.astype(target))
    if target == F32 and rounding(op) != "rn":
        near = a.astype(F64)
        rest = (a - near.astype(a.dtype)).view(UNSIGNED_TO_SIGNED[a.dtype.itemsize])
        return to_f32(near, rounding(op), rest.astype(F64))
    if "sat" in op.mods and target.kind in "iu":
        limits: Any = np.iinfo(target)
        own: Any = np.iinfo(a.dtype)
        a = np.clip(a, max(limits.min, own.min), min(limits.max, own.max))
    return a.astype(target)


UNSIGNED_TO_SIGNED = {1: np.dtype(np.int8), 2: np.dtype(np.int16), 4: I32, 8: I64}


def _float_to_int(x: Value, target: np.dtype[Any]) -> Value:
    """Saturating, NaN to 0. x: float64 with an integral value."""
    limits: Any = np.iinfo(target)
    top = float(limits.max)  # rounds up to 2^63 or 2^64 for the 64-bit types
    inside = np.where(np.isnan(x) | (x >= top) | (x <= limits.min), 0.0, x).astype(target)
    high = np.where(x >= top, target.type(limits.max), inside)
    return np.where(x <= limits.min, target.type(limits.min), high)


def _cvt_half(target: str, source: str, *values: Value) -> Value:
    """To and from bfloat16, and pairs of halves: the first source goes to the upper half."""
    if source == "bf16":
        return (values[0].astype(U32) << U32.type(16)).view(F32)
    halves = []
    for value in values:
        if "bf16" in target:
            bits = value.view(U32)
            odd = bits >> U32.type(16) & U32.type(1)
            near = (bits + U32.type(0x7FFF) + odd) >> U32.type(16)
            halves.append(np.where(np.isnan(value), U32.type(0x7FFF), near))
        else:
            halves.append(value.astype(F16).view(U16).astype(U32))
    if len(halves) == 1:
        return halves[0].astype(U16)
    return halves[0] << U32.type(16) | halves[1]


@opcode("cvta", types="?")
def cvta(op: Op, a: Value) -> Value:
    """Between the generic address and the one inside a space: see memory.WINDOW."""
    from .memory import WINDOW

    window = WINDOW.get(next((mod for mod in op.mods if mod in WINDOW), "global"), 0)
    offset = np.array(window, a.dtype)[()]
    return a - offset if "to" in op.mods else a + offset
