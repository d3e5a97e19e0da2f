"""The table of arithmetic opcodes, and how their sources are typed.

A function takes the instruction and the values of its sources and returns the result, or a tuple
of results. A value has one entry a lane, or fewer where lanes agree: broadcasting does the rest.
arithmetic.py, bits.py and convert.py hold the functions, one short one an opcode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .ptx import Op

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
    """Register a function for opcodes. types: a letter for each source, the last repeats:

    T the instruction's type    W twice as wide    u uint32    p predicate    ? as it is
    2 the last type of the opcode, where it has several
    """

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
        "T": own, "W": WIDER.get(own, own), "u": U32, "p": BOOL, "?": None,
        "2": DTYPES[names[-1]],
    }  # fmt: skip
    return [meaning[letters[min(i, len(letters) - 1)]] for i in range(count)]
