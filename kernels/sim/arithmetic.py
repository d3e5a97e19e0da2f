"""Arithmetic of floats and integers.

float32 runs with denormals flushed, as NVRTC compiles it (-ftz=true): see denormals.py.
An FMA is the float64 product, exact, plus the addend in float64, rounded once more to float32. It
can differ from a true FMA by the last bit where the float64 sum falls on a tie (about 2^-29).
Approximate functions (ex2, lg2, rcp, rsqrt, sin, cos, tanh) are NumPy's, not a GPU's last bits.
"""

from __future__ import annotations

import numpy as np

from .opcodes import F32, F64, I32, I64, U8, U32, U64, WIDER, Value, opcode
from .ptx import Op
from .rounding import rounding, saturate, to_f32, two_product, two_sum

# --- float and integer -------------------------------------------------------------------------


@opcode("add")
def add(op: Op, a: Value, b: Value) -> Value:
    if op.dtype == F32 and rounding(op) != "rn":
        return to_f32(*_reorder(two_sum(a.astype(F64), b.astype(F64)), rounding(op)))
    if op.dtype == I32 and "sat" in op.mods:
        return np.clip(a.astype(I64) + b, -(2**31), 2**31 - 1).astype(I32)
    return saturate(op, a + b)


@opcode("sub")
def sub(op: Op, a: Value, b: Value) -> Value:
    return add(op, a, -b) if op.dtype.kind == "f" else a - b


def _reorder(sum_and_error: tuple[Value, Value], mode: str) -> tuple[Value, str, Value]:
    return sum_and_error[0], mode, sum_and_error[1]


@opcode("mul", "mul24")
def mul(op: Op, a: Value, b: Value) -> Value:
    if op.dtype.kind == "f":
        if op.dtype == F32 and rounding(op) != "rn":
            return to_f32(a.astype(F64) * b.astype(F64), rounding(op))
        return saturate(op, a * b)
    if "wide" in op.mods:
        wider = WIDER[op.dtype]
        return a.astype(wider) * b.astype(wider)
    return mul_hi(a, b) if "hi" in op.mods else a * b


def mul_hi(a: Value, b: Value) -> Value:
    """The upper half of the product of two integers."""
    dtype = a.dtype
    if dtype in WIDER:
        wider = WIDER[dtype]
        return (a.astype(wider) * b.astype(wider) >> wider.type(8 * dtype.itemsize)).astype(dtype)
    if dtype == I64:
        high = mul_hi(a.view(U64), b.view(U64)).view(I64)
        return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)
    half, low = U64.type(32), U64.type(2**32 - 1)
    ah, al, bh, bl = a >> half, a & low, b >> half, b & low
    middle = ah * bl + (al * bl >> half)
    return ah * bh + (middle >> half) + ((middle & low) + al * bh >> half)


@opcode("mad", "mad24", "fma")
def mad(op: Op, a: Value, b: Value, c: Value) -> Value:
    if op.dtype == F32:
        mode = rounding(op)
        product = a.astype(F64) * b.astype(F64)
        if mode == "rn":
            product = product + c.astype(F64)
            return saturate(op, product.astype(F32))
        return to_f32(*_reorder(two_sum(product, c.astype(F64)), mode))
    if op.dtype == F64:
        product, e = two_product(a, b)
        s, t = two_sum(product, c)
        return np.where(np.isfinite(s), s + (t + e), s)
    return mul(op, a, b) + c


@opcode("div")
def div(op: Op, a: Value, b: Value) -> Value:
    if op.dtype.kind != "f":
        return (a - np.fmod(a, b)) // b
    if op.dtype == F32 and rounding(op) != "rn":
        wide = b.astype(F64)
        quotient = a.astype(F64) / wide
        return to_f32(quotient, rounding(op), -mad_residue(quotient, wide, a.astype(F64)) / wide)
    return a / b


def mad_residue(q: Value, b: Value, a: Value) -> Value:
    """q · b - a, by the exact product."""
    p, e = two_product(q, b)
    return (p - a) + e


@opcode("rem")
def rem(op: Op, a: Value, b: Value) -> Value:
    return np.fmod(a, b)


@opcode("abs")
def absolute(op: Op, a: Value) -> Value:
    return np.abs(a)


@opcode("neg")
def neg(op: Op, a: Value) -> Value:
    return -a


@opcode("min")
def minimum(op: Op, a: Value, b: Value) -> Value:
    return np.minimum(a, b) if "NaN" in op.mods else np.fmin(a, b)


@opcode("max")
def maximum(op: Op, a: Value, b: Value) -> Value:
    return np.maximum(a, b) if "NaN" in op.mods else np.fmax(a, b)


@opcode("copysign")
def copysign(op: Op, a: Value, b: Value) -> Value:
    return np.copysign(b, a)


@opcode("sad")
def sad(op: Op, a: Value, b: Value, c: Value) -> Value:
    return c + (np.maximum(a, b) - np.minimum(a, b))


# --- functions of a float ----------------------------------------------------------------------


@opcode("rcp")
def rcp(op: Op, a: Value) -> Value:
    return div(op, op.dtype.type(1), a)


@opcode("sqrt")
def sqrt(op: Op, a: Value) -> Value:
    return np.sqrt(a)


@opcode("rsqrt")
def rsqrt(op: Op, a: Value) -> Value:
    return (1 / np.sqrt(a.astype(F64))).astype(op.dtype)


@opcode("ex2")
def ex2(op: Op, a: Value) -> Value:
    return np.exp2(a)


@opcode("lg2")
def lg2(op: Op, a: Value) -> Value:
    return np.log2(a)


@opcode("sin")
def sin(op: Op, a: Value) -> Value:
    return np.sin(a)


@opcode("cos")
def cos(op: Op, a: Value) -> Value:
    return np.cos(a)


@opcode("tanh")
def tanh(op: Op, a: Value) -> Value:
    return np.tanh(a)


@opcode("testp")
def testp(op: Op, a: Value) -> Value:
    tiny = np.finfo(op.dtype).tiny
    return {
        "finite": np.isfinite(a), "infinite": np.isinf(a), "number": ~np.isnan(a),
        "notanumber": np.isnan(a), "normal": np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": (a != 0) & (np.abs(a) < tiny),
    }[op.mods[0]]  # fmt: skip


@opcode("dp4a", types="TTT")
def dp4a(op: Op, a: Value, b: Value, c: Value) -> Value:
    signs = [mod for mod in op.mods if mod in ("u32", "s32")]
    total = c.astype(I64)
    for i in range(4):
        parts = []
        for value, sign in zip((a, b), signs, strict=True):
            byte = (value.view(U32) >> U32.type(8 * i)).astype(U8)
            parts.append(byte.view(np.int8) if sign == "s32" else byte)
        total = total + parts[0].astype(I64) * parts[1].astype(I64)
    return total.astype(op.dtype)
