"""Each arithmetic opcode of sim against plain Python, a lane at a time, edge cases included."""

import math
import re
import struct
from fractions import Fraction

import numpy as np
import pytest

from minigan.kernels import sim
from minigan.kernels.sim import opcodes

try:
    sim.load('extern "C" __global__ void probe() {}')
except sim.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

INF, NAN = math.inf, math.nan
TINY = 2.0**-126

# --- the oracle's arithmetic: Python's ints, and exact fractions rounded once -------------------


def to_f32(value, mode="rn"):
    """A Fraction or float to the float32 next to it, denormals flushed."""
    if isinstance(value, float) and not math.isfinite(value):
        return value
    exact = Fraction(value)
    near = np.float32(float(exact) if abs(exact) < 2**128 else math.copysign(INF, exact))
    choices = [np.nextafter(near, np.float32(-INF)), near, np.nextafter(near, np.float32(INF))]
    beyond = 2**128 if mode == "rn" else 2**2000  # what inf counts as
    size = {c: Fraction(float(c)) if np.isfinite(c) else int(np.sign(c)) * beyond for c in choices}
    if mode == "rm" or (mode == "rz" and exact > 0):
        result = max(c for c in choices if size[c] <= exact)
    elif mode == "rp" or mode == "rz":
        result = min(c for c in choices if size[c] >= exact)
    else:
        result = min(choices, key=lambda c: (abs(size[c] - exact), c.view("u4") & np.uint32(1)))
    result = float(result)
    if abs(result) < TINY:
        return math.copysign(0.0, exact if exact else result)
    return result


def exactly(function, mode="rn"):
    """Of finite operands: the exact result, rounded once. Else float arithmetic's inf and NaN."""

    def rounded(*values):
        values = [math.copysign(0.0, v) if abs(v) < TINY else v for v in values]
        if all(math.isfinite(v) for v in values):
            try:
                exact = function(*(Fraction(v) for v in values))
            except ZeroDivisionError:
                exact = 0
            if exact:
                return to_f32(exact, mode)
        with np.errstate(all="ignore"):
            return float(function(*(np.float64(v) for v in values)))

    return rounded


def flushed(function):
    return lambda *v: function(*(math.copysign(0.0, x) if abs(x) < TINY else x for x in v))


def f16(value):
    return float(np.float16(value))


def bits(value, code="f"):
    return int.from_bytes(struct.pack("<" + code, value), "little")


def clamp_to_int(value, low, high):
    return 0 if math.isnan(value) else int(min(max(value, low), high))


def bfe(a, start, length, width, signed):
    start, length = start & 255, length & 255
    unsigned = a % 2**width
    field = unsigned >> start & (1 << length) - 1
    if signed and length:
        top = unsigned >> min(start + length - 1, width - 1) & 1
        visible = max(0, min(length, width - start))
        if top:
            field |= -1 << visible
    return field


def bfi(a, b, start, length):
    start, length = start & 255, length & 255
    mask = ((1 << length) - 1 << start) % 2**32
    return (a << start) & mask | b & ~mask


def prmt(a, b, selector):
    source = (b << 32 | a).to_bytes(8, "little")
    picked = [source[selector >> 4 * i & 7] for i in range(4)]
    signs = [selector >> 4 * i & 8 for i in range(4)]
    return int.from_bytes(
        [(255 if p & 128 else 0) if s else p for p, s in zip(picked, signs, strict=True)], "little"
    )


def divide(a, b):
    """C's: towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def half_away(value, step):
    """cvt.rna: to the nearest multiple, ties away from zero."""
    return math.copysign(math.floor(abs(value) / step + 0.5) * step, value)


def rna_tf32(a):
    if not math.isfinite(a) or abs(a) < TINY:
        return a
    return half_away(a, 2.0 ** (math.frexp(a)[1] - 11))


# --- values -------------------------------------------------------------------------------------

EDGES = {
    "f": [0.0, -0.0, 1.0, -1.5, 0.1, 3e38, -3e38, 1e-38, TINY, -TINY, INF, -INF, NAN, 2.5, 1e10],
    "d": [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e300, 1e-300, INF, -INF, NAN, 2.5, 2.0**63, -3e9],
    "i": [0, 1, 2, -1, -2, 7, 31, 32, 33, 255],
}
NUMPY = {"f32": "f4", "f64": "f8", "f16": "f2", "u32": "u4", "s32": "i4", "b32": "u4",
         "u64": "u8", "s64": "i8", "b64": "u8", "u16": "u2", "s16": "i2", "u8": "u1"}  # fmt: skip
C_TYPES = {"f4": "float", "f8": "double", "u4": "unsigned", "i4": "int", "u2": "unsigned short",
           "u8": "unsigned long long", "i8": "long long", "i2": "short"}  # fmt: skip
LETTERS = {"f4": "f", "f8": "d", "u4": "r", "i4": "r", "u8": "l", "i8": "l", "u2": "h", "i2": "h"}
LANES = 192


def draw(kind, rng, place):
    """LANES values of a type: edge cases first, each against each by another stride."""
    dtype = np.dtype(NUMPY[kind])
    if dtype.kind == "f":
        edges = np.array(EDGES["f" if dtype.itemsize == 4 else "d"], dtype)
        random = (rng.standard_normal(LANES) * 2.0 ** rng.integers(-30, 30, LANES)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        edges = np.array([v % 2 ** (8 * dtype.itemsize) for v in EDGES["i"]], f"u{dtype.itemsize}")
        edges = np.append(edges.view(dtype), np.array([limits.min, limits.max], dtype))
        random = rng.integers(limits.min, limits.max, LANES, dtype, endpoint=True)
        small = rng.integers(0, 70, LANES).astype(dtype)
        random = np.where(rng.random(LANES) < 0.3, small, random)
    count = len(edges)
    paired = np.arange(LANES * 3 // 4) // count**place % count
    return np.concatenate([edges[paired], random[len(paired) :]])


# --- the table: instruction, result type, source types, oracle ------------------------------------

f, s, u, sl, ul, d = "f32", "s32", "u32", "s64", "u64", "f64"
ROWS = [
    # float32
    ("add.ftz.f32", f, (f, f), exactly(lambda a, b: a + b)),
    ("add.rz.ftz.f32", f, (f, f), exactly(lambda a, b: a + b, "rz")),
    ("add.rm.ftz.f32", f, (f, f), exactly(lambda a, b: a + b, "rm")),
    ("sub.ftz.f32", f, (f, f), exactly(lambda a, b: a - b)),
    ("sub.rp.ftz.f32", f, (f, f), exactly(lambda a, b: a - b, "rp")),
    ("mul.ftz.f32", f, (f, f), exactly(lambda a, b: a * b)),
    ("mul.rz.ftz.f32", f, (f, f), exactly(lambda a, b: a * b, "rz")),
    ("fma.rn.ftz.f32", f, (f, f, f), exactly(lambda a, b, c: a * b + c)),
    ("fma.rm.ftz.f32", f, (f, f, f), exactly(lambda a, b, c: a * b + c, "rm")),
    ("fma.rp.ftz.f32", f, (f, f, f), exactly(lambda a, b, c: a * b + c, "rp")),
    ("fma.rz.ftz.f32", f, (f, f, f), exactly(lambda a, b, c: a * b + c, "rz")),
    ("div.rn.ftz.f32", f, (f, f), exactly(lambda a, b: a / b)),
    ("div.rz.ftz.f32", f, (f, f), exactly(lambda a, b: a / b, "rz")),
    ("rcp.rn.ftz.f32", f, (f,), exactly(lambda a: 1 / a)),
    ("abs.ftz.f32", f, (f,), abs),
    ("neg.ftz.f32", f, (f,), lambda a: -a),
    ("min.ftz.f32", f, (f, f), flushed(lambda a, b: b if a != a else a if b != b else min(a, b))),
    ("max.ftz.f32", f, (f, f), flushed(lambda a, b: b if a != a else a if b != b else max(a, b))),
    ("max.NaN.ftz.f32", f, (f, f), flushed(lambda a, b: NAN if a != a or b != b else max(a, b))),
    ("copysign.f32", f, (f, f), lambda a, b: math.copysign(b, a)),
    ("add.sat.ftz.f32", f, (f, f), lambda a, b: 0.0 if a + b != a + b else
        min(1.0, max(0.0, exactly(lambda a, b: a + b)(a, b)))),
    ("fma.rn.sat.ftz.f32", f, (f, f, f), lambda a, b, c:
        0.0 if (y := exactly(lambda a, b, c: a * b + c)(a, b, c)) != y else min(1.0, max(0.0, y))),
    # float64
    ("add.f64", d, (d, d), lambda a, b: a + b),
    ("mul.f64", d, (d, d), lambda a, b: a * b),
    ("sub.f64", d, (d, d), lambda a, b: a - b),
    ("fma.rn.f64", d, (d, d, d), lambda a, b, c: float(Fraction(a) * Fraction(b) + Fraction(c))
        if all(1e-60 < abs(v) < 1e60 for v in (a, b, c)) else None),
    ("div.rn.f64", d, (d, d), lambda a, b: float(np.float64(a) / np.float64(b))),
    # integers
    ("add.s32", s, (s, s), lambda a, b: a + b),
    ("add.sat.s32", s, (s, s), lambda a, b: min(max(a + b, -(2**31)), 2**31 - 1)),
    ("sub.s32", s, (s, s), lambda a, b: a - b),
    ("add.s64", sl, (sl, sl), lambda a, b: a + b),
    ("mul.lo.s32", s, (s, s), lambda a, b: a * b),
    ("mul.lo.s64", sl, (sl, sl), lambda a, b: a * b),
    ("mul.hi.s32", s, (s, s), lambda a, b: a * b >> 32),
    ("mul.hi.u32", u, (u, u), lambda a, b: a * b >> 32),
    ("mul.hi.s64", sl, (sl, sl), lambda a, b: a * b >> 64),
    ("mul.hi.u64", ul, (ul, ul), lambda a, b: a * b >> 64),
    ("mul.wide.s32", sl, (s, s), lambda a, b: a * b),
    ("mul.wide.u32", ul, (u, u), lambda a, b: a * b),
    ("mul.wide.u16", u, ("u16", "u16"), lambda a, b: a * b),
    ("mul.wide.s16", s, ("s16", "s16"), lambda a, b: a * b),
    ("mad.lo.s32", s, (s, s, s), lambda a, b, c: a * b + c),
    ("mad.hi.u32", u, (u, u, u), lambda a, b, c: (a * b >> 32) + c),
    ("mad.wide.s32", sl, (s, s, sl), lambda a, b, c: a * b + c),
    ("mad.wide.u32", ul, (u, u, ul), lambda a, b, c: a * b + c),
    ("mul24.lo.s32", s, (s, s), lambda a, b: (a << 8) * (b << 8) >> 16
        if abs(a) < 2**23 and abs(b) < 2**23 else None),
    ("mad24.lo.s32", s, (s, s, s), lambda a, b, c: a * b + c
        if abs(a) < 2**23 and abs(b) < 2**23 else None),
    ("div.s32", s, (s, s), lambda a, b: divide(a, b) if b else None),
    ("div.u32", u, (u, u), lambda a, b: a // b if b else None),
    ("div.s64", sl, (sl, sl), lambda a, b: divide(a, b) if b else None),
    ("rem.s32", s, (s, s), lambda a, b: a - divide(a, b) * b if b else None),
    ("rem.u64", ul, (ul, ul), lambda a, b: a % b if b else None),
    ("abs.s32", s, (s,), abs),
    ("neg.s32", s, (s,), lambda a: -a),
    ("min.s32", s, (s, s), min),
    ("max.u32", u, (u, u), max),
    ("min.u64", ul, (ul, ul), min),
    ("sad.u32", u, (u, u, u), lambda a, b, c: c + abs(a - b)),
    ("sad.s32", s, (s, s, u), lambda a, b, c: c + abs(a - b)),
    ("dp4a.s32.s32", s, (s, s, s), lambda a, b, c: c + sum(
        struct.unpack("4b", struct.pack("<i", a))[i] * struct.unpack("4b", struct.pack("<i", b))[i]
        for i in range(4))),
    ("dp4a.u32.s32", s, (u, s, s), lambda a, b, c: c + sum(
        (a >> 8 * i & 255) * struct.unpack("4b", struct.pack("<i", b))[i] for i in range(4))),
    # bits
    ("and.b32", u, (u, u), lambda a, b: a & b),
    ("or.b64", ul, (ul, ul), lambda a, b: a | b),
    ("xor.b32", u, (u, u), lambda a, b: a ^ b),
    ("not.b32", u, (u,), lambda a: ~a),
    ("cnot.b32", u, (u,), lambda a: int(a == 0)),
    ("shl.b32", u, (u, u), lambda a, n: a << n if n < 32 else 0),
    ("shl.b64", ul, (ul, u), lambda a, n: a << n if n < 64 else 0),
    ("shr.u32", u, (u, u), lambda a, n: a >> n if n < 64 else 0),
    ("shr.s32", s, (s, u), lambda a, n: a >> min(n, 31)),
    ("shr.s64", sl, (sl, u), lambda a, n: a >> min(n, 63)),
    ("shf.l.wrap.b32", u, (u, u, u), lambda a, b, n: (b << 32 | a) << (n & 31) >> 32),
    ("shf.r.wrap.b32", u, (u, u, u), lambda a, b, n: (b << 32 | a) >> (n & 31)),
    ("shf.l.clamp.b32", u, (u, u, u), lambda a, b, n: (b << 32 | a) << min(n, 32) >> 32),
    ("shf.r.clamp.b32", u, (u, u, u), lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    ("lop3.b32 {o}, {0}, {1}, {2}, 0x96;", u, (u, u, u), lambda a, b, c: a ^ b ^ c),
    ("lop3.b32 {o}, {0}, {1}, {2}, 0xCA;", u, (u, u, u), lambda a, b, c: a & b | ~a & c),
    ("lop3.b32 {o}, {0}, {1}, {2}, 0xE8;", u, (u, u, u), lambda a, b, c: a & b | a & c | b & c),
    ("prmt.b32", u, (u, u, u), prmt),
    ("bfe.u32", u, (u, u, u), lambda a, p, n: bfe(a, p, n, 32, False)),
    ("bfe.s32", s, (s, u, u), lambda a, p, n: bfe(a, p, n, 32, True)
        if (p & 255) < 32 or not n & 255 else -1 if a < 0 else 0),
    ("bfe.u64", ul, (ul, u, u), lambda a, p, n: bfe(a, p, n, 64, False)),
    ("bfi.b32", u, (u, u, u, u), bfi),
    ("popc.b32", u, (u,), lambda a: a.bit_count()),
    ("popc.b64", u, (ul,), lambda a: a.bit_count()),
    ("clz.b32", u, (u,), lambda a: 32 - a.bit_length()),
    ("clz.b64", u, (ul,), lambda a: 64 - a.bit_length()),
    ("bfind.u32", u, (u,), lambda a: a.bit_length() - 1),
    ("bfind.s32", u, (s,), lambda a: (~a if a < 0 else a).bit_length() - 1),
    ("bfind.shiftamt.u32", u, (u,), lambda a: 32 - a.bit_length() if a else -1),
    ("brev.b32", u, (u,), lambda a: int(f"{a:032b}"[::-1], 2)),
    ("brev.b64", ul, (ul,), lambda a: int(f"{a:064b}"[::-1], 2)),
    # choice
    ("slct.s32.s32", s, (s, s, s), lambda a, b, c: a if c >= 0 else b),
    ("slct.f32.s32", f, (f, f, s), lambda a, b, c: a if c >= 0 else b),
    ("set.lt.u32.s32", u, (s, s), lambda a, b: -int(a < b)),
    ("set.ge.ftz.f32.f32", f, (f, f), flushed(lambda a, b: float(a >= b))),
    # conversions
    ("cvt.rzi.s32.f32", s, (f,), lambda a: clamp_to_int(a, -(2**31), 2**31 - 1)),
    ("cvt.rzi.u32.f32", u, (f,), lambda a: clamp_to_int(a, 0, 2**32 - 1)),
    ("cvt.rzi.s64.f64", sl, (d,), lambda a: clamp_to_int(a, -(2**63), 2**63 - 1)),
    ("cvt.rzi.u64.f64", ul, (d,), lambda a: clamp_to_int(a, 0, 2**64 - 1)),
    ("cvt.rni.s32.f32", s, (f,), lambda a: clamp_to_int(
        a if not math.isfinite(a) else round(a), -(2**31), 2**31 - 1)),
    ("cvt.rmi.s32.f32", s, (f,), lambda a: clamp_to_int(
        a if not math.isfinite(a) else math.floor(a), -(2**31), 2**31 - 1)),
    ("cvt.rpi.ftz.s32.f32", s, (f,), flushed(lambda a: clamp_to_int(
        a if not math.isfinite(a) else math.ceil(a), -(2**31), 2**31 - 1))),
    ("cvt.rni.ftz.f32.f32", f, (f,), lambda a: a if not math.isfinite(a) else
        math.copysign(float(round(a)), a)),
    ("cvt.rmi.ftz.f32.f32", f, (f,), lambda a: a if not math.isfinite(a) else
        math.copysign(0.0, a) if abs(a) < TINY else float(math.floor(a)) or math.copysign(0.0, a)),
    ("cvt.sat.ftz.f32.f32", f, (f,), flushed(
        lambda a: 0.0 if a != a else min(1.0, max(0.0, a)))),
    ("cvt.rn.f32.s32", f, (s,), to_f32),
    ("cvt.rn.f32.u32", f, (u,), to_f32),
    ("cvt.rn.f32.s64", f, (sl,), to_f32),
    ("cvt.rn.f32.u64", f, (ul,), to_f32),
    ("cvt.rz.f32.u32", f, (u,), lambda a: to_f32(a, "rz")),
    ("cvt.rp.f32.s64", f, (sl,), lambda a: to_f32(a, "rp")),
    ("cvt.rn.f64.s64", d, (sl,), float),
    ("cvt.rn.f64.u64", d, (ul,), float),
    ("cvt.f64.f32", d, (f,), lambda a: math.copysign(0.0, a) if abs(a) < TINY else a),
    ("cvt.rn.ftz.f32.f64", f, (d,), lambda a: a if not math.isfinite(a) else
        math.copysign(INF, a) if abs(a) > 3.5e38 else to_f32(a) or math.copysign(0.0, a)),
    ("cvt.rz.ftz.f32.f64", f, (d,), lambda a: a if not math.isfinite(a) else
        to_f32(a, "rz") or math.copysign(0.0, a)),
    ("cvt.s64.s32", sl, (s,), int),
    ("cvt.u64.u32", ul, (u,), int),
    ("cvt.u32.u64", u, (ul,), int),
    ("cvt.s32.s16", s, ("s16",), int),
    ("cvt.u32.u16", u, ("u16",), int),
    ("cvt.u16.u32", "u16", (u,), int),
    ("cvt.s32.s8", s, (s,), lambda a: (a + 128) % 256 - 128),
    ("cvt.u32.u8", u, (u,), lambda a: a % 256),
    ("cvt.sat.s32.s64", s, (sl,), lambda a: min(max(a, -(2**31)), 2**31 - 1)),
    ("cvt.sat.u32.s32", u, (s,), lambda a: max(a, 0)),
    ("cvt.rna.tf32.f32", "b32", (f,), lambda a: bits(rna_tf32(a))
        if math.isfinite(a) and abs(a) >= TINY and abs(a) < 3e38 else None),
    ("{{.reg .b16 h; cvt.rn.f16.f32 h, {0}; cvt.f32.f16 {o}, h;}}", f, (f,), lambda a:
        f16(a) if not 0 < abs(f16(a)) < TINY else 0.0),
    ("{{.reg .b16 h; cvt.rn.bf16.f32 h, {0}; cvt.f32.bf16 {o}, h;}}", f, (f,), lambda a:
        None if not TINY <= abs(a) < 3.38e38 else
        float(np.uint32(bits(to_f32(round(math.frexp(a)[0] * 256) / 256 * 2.0 ** math.frexp(a)[1]
        ))).view(np.float32))),
    ("cvt.rn.f16x2.f32 {o}, {0}, {1};", "b32", (f, f), lambda a, b:
        None if a != a or b != b else bits(f16(a), "e") << 16 | bits(f16(b), "e")
        if max(abs(a), abs(b)) < 6e4 else None),
    # moving
    ("mov.b32", u, (f,), lambda a: bits(a) if a == a else None),
    ("mov.b64 {o}, {{{0}, {1}}};", ul, (u, u), lambda a, b: b << 32 | a),
    ("{{.reg .b32 x; mov.b64 {{x, {o}}}, {0};}}", u, (ul,), lambda a: a >> 32),
    ("{{.reg .b32 x; mov.b64 {{{o}, x}}, {0};}}", u, (ul,), lambda a: a),
    ("{{.reg .b16 x; mov.b32 {{x, {o}}}, {0};}}", "u16", (u,), lambda a: a >> 16),
    ("mov.b32 {o}, {{{0}, {1}}};", u, ("u16", "u16"), lambda a, b: b << 16 | a),
    ("mov.b32 {o}, 0f3F800000;", u, (u,), lambda a: 0x3F800000),
    ("add.s32 {o}, {0}, -5;", s, (s,), lambda a: a - 5),
]  # fmt: skip

# testp, setp and selp by way of a predicate
P = "{{.reg .pred p, q; %s selp.u32 {o}, 1, 0, p;}}"
UNORDERED = "lt le gt ge eq ne"
ORDER = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def compare(name):
    return eval(f"lambda a, b: int(a {ORDER[name]} b)")


def ordered(name):
    return lambda a, b: int(a == a and b == b and compare(name)(a, b))


def unordered(name):
    return lambda a, b: int(a != a or b != b or compare(name)(a, b))


for name in ORDER:
    ROWS += [
        (P % f"setp.{name}.s32 p, {{0}}, {{1}};", u, (s, s), compare(name)),
        (P % f"setp.{name}.u64 p, {{0}}, {{1}};" if name in ("eq", "ne") else
         P % f"setp.{ {'lt': 'lo', 'le': 'ls', 'gt': 'hi', 'ge': 'hs'}[name]}.u64 p, {{0}}, {{1}};",
         u, (ul, ul), compare(name)),
        (P % f"setp.{name}.ftz.f32 p, {{0}}, {{1}};", u, (f, f), flushed(ordered(name))),
        (P % f"setp.{name}u.ftz.f32 p, {{0}}, {{1}};", u, (f, f), flushed(unordered(name))),
    ]  # fmt: skip
ROWS += [
    (P % "setp.num.f32 p, {0}, {1};", u, (f, f), lambda a, b: int(a == a and b == b)),
    (P % "setp.nan.f32 p, {0}, {1};", u, (f, f), lambda a, b: int(a != a or b != b)),
    (P % "setp.lt.s32 p|q, {0}, {1}; not.pred p, q;", u, (s, s), lambda a, b: int(a < b)),
    (P % "setp.gt.s32 q, {0}, 0; setp.lt.and.s32 p, {0}, {1}, q;", u, (s, s),
     lambda a, b: int(a < b and a > 0)),
    (P % "setp.gt.s32 q, {0}, 0; setp.lt.or.s32 p, {0}, {1}, !q;", u, (s, s),
     lambda a, b: int(a < b or a <= 0)),
    (P % "setp.gt.s32 q, {0}, 0; setp.lt.s32 p, {0}, {1}; xor.pred p, p, q;", u, (s, s),
     lambda a, b: int((a < b) != (a > 0))),
    (P % "testp.finite.f32 p, {0};", u, (f,), lambda a: int(math.isfinite(a))),
    (P % "testp.infinite.f32 p, {0};", u, (f,), lambda a: int(math.isinf(a))),
    (P % "testp.notanumber.f32 p, {0};", u, (f,), lambda a: int(a != a)),
    ("{{.reg .pred p; setp.lt.s32 p, {0}, {1}; mov.u32 {o}, 7; @p mov.u32 {o}, {0}; @!p neg.s32 "
     "{o}, {0};}}", s, (s, s), lambda a, b: a if a < b else -a),
]  # fmt: skip

# Approximate functions, to a few parts in 10^7: a GPU's own last bits differ, and so may ours.
APPROXIMATE = [
    ("ex2.approx.ftz.f32", lambda a: 2.0**a, (-100, 100)),
    ("lg2.approx.ftz.f32", math.log2, (1e-30, 1e30)),
    ("rcp.approx.ftz.f32", lambda a: 1 / a, (-1e30, 1e30)),
    ("sqrt.approx.ftz.f32", math.sqrt, (0, 1e30)),
    ("sqrt.rn.ftz.f32", math.sqrt, (0, 1e30)),
    ("rsqrt.approx.ftz.f32", lambda a: 1 / math.sqrt(a), (1e-30, 1e30)),
    ("sin.approx.ftz.f32", math.sin, (-3, 3)),
    ("cos.approx.ftz.f32", math.cos, (-3, 3)),
    ("tanh.approx.f32", math.tanh, (-5, 5)),
    ("sqrt.rn.f64", math.sqrt, (0, 1e30)),
]


def source_of(rows):
    """One CUDA source with a kernel op0, op1, ... for each row."""
    kernels = []
    for n, (instruction, result, sources, *_) in enumerate(rows):
        result, *sources = [NUMPY[kind] for kind in (result, *sources)]
        if " " not in instruction:
            places = ", ".join(f"{{{i}}}" for i in range(len(sources)))
            instruction = f"{instruction} {{o}}, {places};"
        text = instruction.format(*(f"%{i + 1}" for i in range(len(sources))), o="%0")
        parameters = "".join(f", const {C_TYPES[t]}* x{i}" for i, t in enumerate(sources))
        inputs = ", ".join(f'"{LETTERS[t]}"(x{i}[i])' for i, t in enumerate(sources))
        kernels.append(
            f'extern "C" __global__ void op{n}({C_TYPES[result]}* y{parameters}) {{\n'
            f"  int i = threadIdx.x; {C_TYPES[result]} r;\n"
            f'  asm volatile("{text}" : "={LETTERS[result]}"(r) : {inputs}); y[i] = r;\n}}\n'
        )
    return "".join(kernels)


SOURCE = source_of(ROWS)
APPROXIMATE_ROWS = [
    (text, "f64" if "64" in text else f, ("f64" if "64" in text else f,))
    for text, *_ in APPROXIMATE
]
APPROXIMATE_SOURCE = source_of(APPROXIMATE_ROWS)


@pytest.mark.parametrize("n", range(len(ROWS)), ids=[row[0] for row in ROWS])
def test_opcode(n):
    instruction, result, kinds, oracle = ROWS[n]
    rng = np.random.default_rng(n)
    sources = [draw(kind, rng, place) for place, kind in enumerate(kinds)]
    y = np.zeros(LANES, NUMPY[result])
    sim.run(SOURCE, f"op{n}", 1, LANES, y, *sources, arch="sm_90")
    checked = 0
    for lane in range(LANES):
        operands = [source[lane].item() for source in sources]
        with np.errstate(all="ignore"):
            expected = oracle(*operands)
        if expected is None:  # undefined
            continue
        checked += 1
        if y.dtype.kind == "f":
            wanted = y.dtype.type(expected)
            same = np.isnan(wanted) and np.isnan(y[lane])
            same = same or (wanted == y[lane])
        else:
            wanted = expected % 2 ** (8 * y.itemsize)
            same = wanted == int(y[lane]) % 2 ** (8 * y.itemsize)
        assert same, f"{instruction} of {operands} gave {y[lane]!r}, not {wanted!r}"
    assert checked > LANES // 8


@pytest.mark.parametrize("n", range(len(APPROXIMATE)), ids=[row[0] for row in APPROXIMATE])
def test_approximate_function(n):
    _, oracle, (low, high) = APPROXIMATE[n]
    kind = NUMPY[APPROXIMATE_ROWS[n][1]]
    rng = np.random.default_rng(n)
    if high > 1000:
        signs = rng.choice([-1, 1], LANES) if low < 0 else 1
        x = (signs * 2.0 ** rng.uniform(-90, 90, LANES)).astype(kind)
    else:
        x = rng.uniform(low, high, LANES).astype(kind)
    y = np.zeros(LANES, kind)
    sim.run(APPROXIMATE_SOURCE, f"op{n}", 1, LANES, y, x, arch="sm_90")
    expected = [oracle(value) for value in x.tolist()]
    np.testing.assert_allclose(y, expected, rtol=5e-7, atol=2e-7)


def test_every_opcode_is_in_the_tables():
    text = " ".join(row[0] for row in ROWS + APPROXIMATE)
    tested = set(re.findall(r"\b([a-z][a-z0-9]*)\.", text))
    elsewhere = {"cvta"}
    assert set(opcodes.FUNCTIONS) - tested - elsewhere == set()


def test_denormals_are_flushed_in_sim_and_kept_outside():
    source = source_of([("mul.ftz.f32", f, (f, f)), ("add.ftz.f32", f, (f, f))])
    x, y, z = np.float32([1e-30, 1e-39, -1e-39]), np.float32([1e-9, 1e9, 1]), np.zeros(3, "f4")
    sim.run(source, "op0", 1, 3, z, x, y)
    np.testing.assert_array_equal(z.view("u4"), np.float32([0, 0, -0.0]).view("u4"))
    assert np.float32(1e-30) * np.float32(1e-9) != 0  # restored


def test_unknown_opcode_is_a_fault_with_its_line():
    source = """
extern "C" __global__ void k(unsigned* y) {
    unsigned a = y[0];
    asm volatile("vadd.u32.u32.u32 %0, %0, %0;" : "+r"(a));
    y[0] = a;
}"""
    with pytest.raises(sim.Fault, match=r"unknown opcode: kernel k, line 4: .*\n.*`vadd") as caught:
        sim.run(source, "k", 1, 1, np.zeros(1, np.uint32))
    assert caught.value.line == 4
