"""Bits, comparisons and choices."""

from __future__ import annotations

from typing import Any

import numpy as np

from .opcodes import DTYPES, F32, F64, U32, U64, UNSIGNED, Value, opcode
from .ptx import Op

# --- bits --------------------------------------------------------------------------------------


@opcode("and")
def and_(op: Op, a: Value, b: Value) -> Value:
    return a & b


@opcode("or")
def or_(op: Op, a: Value, b: Value) -> Value:
    return a | b


@opcode("xor")
def xor(op: Op, a: Value, b: Value) -> Value:
    return a ^ b


@opcode("not")
def not_(op: Op, a: Value) -> Value:
    return ~a


@opcode("cnot")
def cnot(op: Op, a: Value) -> Value:
    return (a == 0).astype(op.dtype)


@opcode("shl", types="Tu")
def shl(op: Op, a: Value, n: Value) -> Value:
    return np.left_shift(a, np.minimum(n, 8 * op.dtype.itemsize).astype(op.dtype))


@opcode("shr", types="Tu")
def shr(op: Op, a: Value, n: Value) -> Value:
    return np.right_shift(a, np.minimum(n, 8 * op.dtype.itemsize).astype(op.dtype))


@opcode("shf", types="u")
def shf(op: Op, low: Value, high: Value, n: Value) -> Value:
    """Funnel shift of high:low; .l gives the upper word, .r the lower."""
    n = (n & U32.type(31) if "wrap" in op.mods else np.minimum(n, 32)).astype(U64)
    both = high.astype(U64) << U64.type(32) | low.astype(U64)
    return ((both << n) >> U64.type(32) if "l" in op.mods else both >> n).astype(U32)


@opcode("lop3", types="TTTu")
def lop3(op: Op, a: Value, b: Value, c: Value, table: Value) -> Value:
    """Any function of three bits: bit 4a + 2b + c of `table`."""
    terms = [
        (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        for i in range(8)
        if int(table) >> i & 1
    ]
    return np.bitwise_or.reduce(np.broadcast_arrays(*terms)) if terms else U32.type(0)


@opcode("prmt", types="u")
def prmt(op: Op, a: Value, b: Value, selector: Value) -> Value:
    """Each nibble of `selector` picks one byte of b:a; its top bit asks for the sign of that."""
    if op.mods[-1] != "b32" or len(op.mods) > 1:
        raise NotImplementedError
    both = b.astype(U64) << U64.type(32) | a.astype(U64)
    result: Value = U64.type(0)
    for i in range(4):
        nibble = (selector >> U32.type(4 * i)).astype(U64)
        byte = both >> ((nibble & U64.type(7)) * U64.type(8)) & U64.type(255)
        sign = (byte >> U64.type(7)) * U64.type(255)
        byte = np.where(nibble & U64.type(8), sign, byte)
        result = result | byte << U64.type(8 * i)
    return result.astype(U32)


def _ones(n: Value, dtype: np.dtype[Any]) -> Value:
    """The mask of the low n bits; n may exceed the width."""
    return ~np.left_shift(~dtype.type(0), np.minimum(n, 8 * dtype.itemsize).astype(dtype))


@opcode("bfe", types="Tuu")
def bfe(op: Op, a: Value, start: Value, length: Value) -> Value:
    """`length` bits of a from `start`, signed by its own top bit for signed types."""
    unsigned = UNSIGNED[op.dtype.itemsize]
    width = 8 * op.dtype.itemsize
    start, length = start & U32.type(255), length & U32.type(255)
    ones = _ones(length, unsigned)
    bits = np.right_shift(a, np.minimum(start, width).astype(op.dtype)).view(unsigned) & ones
    if op.dtype.kind == "u":
        return bits
    top = np.minimum(start + length - U32.type(1), width - 1).astype(unsigned)
    negative = (a.view(unsigned) >> top) & unsigned.type(1) != 0
    return np.where((length > 0) & negative, bits | ~ones, bits).view(op.dtype)


@opcode("bfi", types="TTuu")
def bfi(op: Op, a: Value, b: Value, start: Value, length: Value) -> Value:
    """b with its `length` bits from `start` replaced by the low bits of a."""
    start, length = start & U32.type(255), length & U32.type(255)
    place = np.minimum(start, 8 * op.dtype.itemsize).astype(op.dtype)
    ones = np.left_shift(_ones(length, op.dtype), place)
    return (np.left_shift(a, place) & ones) | (b & ~ones)


@opcode("popc")
def popc(op: Op, a: Value) -> Value:
    return np.bitwise_count(a).astype(U32)


def _bit_length(a: Value) -> Value:
    if a.dtype == U64:
        high, low = _bit_length((a >> U64.type(32)).astype(U32)), _bit_length(a.astype(U32))
        return np.where(high > 0, high + U32.type(32), low)
    return np.frexp(a.astype(F64))[1].astype(U32)


@opcode("clz")
def clz(op: Op, a: Value) -> Value:
    return U32.type(8 * op.dtype.itemsize) - _bit_length(a.view(UNSIGNED[op.dtype.itemsize]))


@opcode("bfind")
def bfind(op: Op, a: Value) -> Value:
    """The place of the top bit that is not the sign; 0xffffffff if there is none."""
    if op.dtype.kind == "i":
        a = np.where(a < 0, ~a, a)
    place = _bit_length(a.view(UNSIGNED[op.dtype.itemsize])) - U32.type(1)
    if "shiftamt" in op.mods:
        return np.where(place == 2**32 - 1, place, U32.type(8 * op.dtype.itemsize - 1) - place)
    return place


@opcode("brev")
def brev(op: Op, a: Value) -> Value:
    width = 8 * op.dtype.itemsize
    step = width // 2
    while step:  # swap neighbouring groups of `step` bits
        low = sum(((1 << step) - 1) << i for i in range(0, width, 2 * step))
        mask, n = op.dtype.type(low), op.dtype.type(step)
        a = (a >> n & mask) | (a & mask) << n
        step //= 2
    return a


# --- comparison and choice ---------------------------------------------------------------------

COMPARISONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
               "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
               "hi": np.greater, "hs": np.greater_equal}  # fmt: skip
# ..u: true also for NaN, so it is the negated opposite; "ne" of a float is false for NaN.
UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}


def compare(op: Op, a: Value, b: Value) -> Value:
    name = op.mods[0]
    if name in ("num", "nan"):
        unordered = np.isnan(a) | np.isnan(b)
        return unordered if name == "nan" else ~unordered
    is_float = op.dtype.kind == "f"
    if name == "equ":
        return (a == b) | np.isnan(a) | np.isnan(b)
    if name in UNORDERED:
        return ~COMPARISONS[UNORDERED[name]](a, b)
    if name == "ne" and is_float:
        return (a < b) | (a > b)
    return COMPARISONS[name](a, b)


@opcode("setp", types="TTp")
def setp(op: Op, a: Value, b: Value, c: Value = None) -> Value:
    truth = compare(op, a, b)
    results = (truth, ~truth) if len(op.dests) == 2 else (truth,)
    if c is not None:
        combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[op.mods[1]]
        results = tuple(combine(result, c) for result in results)
    return results if len(results) > 1 else results[0]


@opcode("set", types="TTp")
def set_(op: Op, a: Value, b: Value, c: Value = None) -> Value:
    truth = setp(op, a, b, c)
    result = DTYPES[op.types[0]]
    return truth.astype(F32) if result == F32 else np.where(truth, ~U32.type(0), U32.type(0))


@opcode("selp", types="TTp")
def selp(op: Op, a: Value, b: Value, choice: Value) -> Value:
    return np.where(choice, a, b)


@opcode("slct", types="TT2")
def slct(op: Op, a: Value, b: Value, sign: Value) -> Value:
    return np.where(sign >= 0, a, b)
