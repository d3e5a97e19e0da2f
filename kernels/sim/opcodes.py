"""The arithmetic of PTX: one short function an opcode, on NumPy arrays of lanes.

A function takes the instruction and the values of its sources and returns the result, or a tuple
of results. A value has one entry a lane, or fewer where lanes agree: broadcasting does the rest.

The letters given to @opcode type the sources, in order; the last letter repeats:
    T the instruction's type    W twice as wide    U unsigned of T's width    u uint32
    p predicate                 ? as it is         2 the second type of the opcode

float32 runs with denormals flushed, as NVRTC compiles it (-ftz=true): see machine.flush_denormals.
An FMA is the float64 product, exact, plus the addend in float64, rounded once more to float32. It
can differ from a true FMA by the last bit where the float64 sum falls on a tie (about 2^-29).
Approximate functions (ex2, lg2, rcp, rsqrt, sin, cos, tanh) are NumPy's, not a GPU's last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .parser import Op

Value = Any  # a NumPy array or scalar, broadcastable to (threads, blocks)

F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
U8, U16, U32, U64 = (np.dtype(t) for t in (np.uint8, np.uint16, np.uint32, np.uint64))
I32, I64 = np.dtype(np.int32), np.dtype(np.int64)
BOOL = np.dtype(np.bool_)

DTYPES = {
    "pred": BOOL, "b8": U8, "u8": U8, "s8": np.dtype(np.int8),
    "b16": U16, "u16": U16, "s16": np.dtype(np.int16), "f16": F16, "bf16": U16,
    "b32": U32, "u32": U32, "s32": I32, "f32": F32, "tf32": U32, "f16x2": U32, "bf16x2": U32,
    "b64": U64, "u64": U64, "s64": I64, "f64": F64,
}  # fmt: skip
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
WIDER = {np.dtype(np.int16): I32, U16: U32, I32: I64, U32: U64}

FUNCTIONS: dict[str, Callable[..., Any]] = {}
SOURCE_TYPES: dict[str, str] = {}


def opcode(*names: str, types: str = "T") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            FUNCTIONS[name] = function
            SOURCE_TYPES[name] = types
        return function

    return register


def source_dtypes(op: Op, count: int) -> list[np.dtype[Any] | None]:
    """The dtype in which `op` reads each of its `count` sources; None: as it is."""
    names = op.types or ["b32"]
    own = DTYPES[names[-1]]
    if op.name == "slct":
        own = DTYPES[names[0]]
    letters = SOURCE_TYPES[op.name]
    if op.name == "mad" and "wide" in op.mods:
        letters = "TTW"
    meaning: dict[str, np.dtype[Any] | None] = {
        "T": own, "W": WIDER.get(own, own), "U": UNSIGNED[own.itemsize], "u": U32, "p": BOOL,
        "?": None, "2": DTYPES[names[-1]],
    }  # fmt: skip
    return [meaning[letters[min(i, len(letters) - 1)]] for i in range(count)]


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
    result = U64.type(0)
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
        limits = np.iinfo(target)
        own = np.iinfo(a.dtype)
        a = np.clip(a, max(limits.min, own.min), min(limits.max, own.max))
    return a.astype(target)


UNSIGNED_TO_SIGNED = {1: np.dtype(np.int8), 2: np.dtype(np.int16), 4: I32, 8: I64}


def _float_to_int(x: Value, target: np.dtype[Any]) -> Value:
    """Saturating, NaN to 0. x: float64 with an integral value."""
    limits = np.iinfo(target)
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
