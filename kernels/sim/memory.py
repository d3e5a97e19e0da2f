"""The memories of a launch: global, shared and local, all made of 32-bit words.

A Space is a matrix of words. Global memory has one column. Shared memory has a column a block,
local memory a column a thread, so that the same address in all blocks is one contiguous row.
Addresses count bytes; global ones start at STATIC_BASE, so that a null pointer is out of bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .opcodes import I64, U32, U64, Value
from .parser import STATIC_BASE
from .ptx import Symbol

# A generic address is one of global memory, or a shared or local one plus this.
WINDOW = {"shared": 1 << 40, "local": 1 << 41}

UNWRITTEN = 0xFFFFFFFF  # what shared and local memory holds before it is written: a NaN
GAP = 1 << 16  # unmapped bytes between arrays, so that strays do not land in a neighbour


class Space:
    """words: (rows, columns) uint32. column: the column of each lane, (threads, blocks) or fewer.

    A mask is True, or an array broadcastable to (threads, blocks); other lanes do nothing.
    IndexError: the address is beyond the last row.
    """

    def __init__(self, name: str, words: np.ndarray, column: Value = None) -> None:
        self.name = name
        self.words = words
        self.column = column
        self.bytes = 4 * len(words)

    def load(self, address: Value, dtype: np.dtype[Any], active: Value) -> Value:
        if dtype.itemsize == 8:
            low, high = (self.load(address + i, U32, active) for i in (0, 4))
            return (low.astype(U64) | high.astype(U64) << U64.type(32)).view(dtype)
        if active is not True:
            address = np.where(active, address, 0)
        if self._is_row(address, dtype):
            rows = np.asarray(address >> 2).reshape(-1)
            return self.words.take(rows, axis=0).view(dtype)
        flat = self.words.reshape(-1).view(dtype)
        return flat.take(self._index(address, dtype.itemsize))

    def store(self, address: Value, value: Value, active: Value) -> None:
        """value: unsigned. Where lanes meet, one of them wins."""
        if value.dtype.itemsize == 8:
            self.store(address, value.astype(U32), active)
            self.store(address + 4, (value >> U64.type(32)).astype(U32), active)
            return
        if active is True and self._is_row(address, value.dtype):
            self.words[np.asarray(address >> 2).reshape(-1)] = value
            return
        flat = self.words.reshape(-1).view(value.dtype)
        index = np.asarray(self._index(address, value.dtype.itemsize))
        if active is True:
            shape = np.broadcast_shapes(index.shape, np.shape(value))
            flat[np.broadcast_to(index, shape)] = value
        else:
            index, value, active = np.broadcast_arrays(index, value, active)
            flat[index[active]] = value[active]

    def _is_row(self, address: Value, dtype: np.dtype[Any]) -> bool:
        """Whether all blocks read the same words of their columns."""
        return (
            dtype.itemsize == 4
            and self.column is not None
            and len(self.column) == 1
            and (np.ndim(address) == 0 or address.shape[1] == 1)
        )

    def _index(self, address: Value, size: int) -> Value:
        """Into the flat words, seen as items of `size` bytes."""
        index = address >> 2
        if self.column is not None:
            index = index * self.words.shape[1] + self.column
        return index if size == 4 else index * (4 // size) + (address & 3) // size


class Unwritten(np.ndarray):
    """An array that remembers which of its bytes no kernel has written yet; views forget it."""

    unwritten: np.ndarray | None = None  # bool, a byte each

    def __array_finalize__(self, source: Any) -> None:
        self.unwritten = None


@dataclass
class Extent:
    """An array in global memory: bytes start .. end, and how to speak of it."""

    name: str
    start: int
    end: int
    array: np.ndarray | None = None  # None: a variable of the module

    def element(self, address: int) -> str:
        """`x[17] (x has 16 elements)`"""
        if self.array is None:
            return f"{self.name} at byte {address - self.start}"
        size = self.array.itemsize
        index, rest = divmod(address - self.start, size)
        inside = f" + {rest} bytes" if rest else ""
        return f"{self.name}[{index}]{inside} ({self.name} has {self.array.size} elements)"


class GlobalMemory(Space):
    """Copies of the arguments' arrays, and the module's variables.

    Arrays that overlap in the caller's memory overlap here; a slice keeps the alignment that it
    has within the array that it was cut from, as on a GPU.
    """

    def __init__(self, arrays: dict[str, np.ndarray], statics: list[Symbol]) -> None:
        self.extents = [Extent(s.name, s.address, s.address + s.size) for s in statics]
        cursor = max([STATIC_BASE, *(extent.end for extent in self.extents)])
        self.addresses: dict[str, int] = {}
        group_end = group_shift = 0  # of the arrays that overlap: end, and device minus host
        for name, array in sorted(arrays.items(), key=lambda item: _host(item[1])):
            start = _host(array)
            if start >= group_end:
                cursor = -(-(cursor + GAP) // 256) * 256 + (start - _host(_root(array))) % 256
                group_shift = cursor - start
            group_end = max(group_end, start + array.nbytes)
            cursor = group_end + group_shift
            self.addresses[name] = start + group_shift
            self.extents.append(
                Extent(name, start + group_shift, start + group_shift + array.nbytes, array)
            )
        super().__init__("global", np.zeros(((cursor + GAP) // 4, 1), U32))

        flat = self.words.reshape(-1).view(np.uint8)
        for symbol in statics:
            flat[symbol.address : symbol.address + len(symbol.data)] = list(symbol.data)
        for extent in self.extents:
            if extent.array is not None:
                flat[extent.start : extent.end] = extent.array.reshape(-1).view(np.uint8)

    def copy_out(self) -> None:
        """Back into the caller's arrays."""
        flat = self.words.reshape(-1).view(np.uint8)
        for extent in self.extents:
            if extent.array is not None and extent.array.flags.writeable:
                extent.array.reshape(-1).view(np.uint8)[:] = flat[extent.start : extent.end]

    def where_is(self, address: int) -> str:
        """The array at or nearest to that address, in words."""
        if address < STATIC_BASE:
            return f"address {address}, a null pointer"
        extent = min(self.extents, key=lambda e: max(e.start - address, address - e.end + 1))
        return extent.element(address)


def _host(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _root(array: np.ndarray) -> np.ndarray:
    """The array that `array` is a slice of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def columns(name: str, size: int, lanes: tuple[int, int]) -> Space:
    """Shared memory of lanes[1] blocks, or local memory of all lanes; `size` bytes each."""
    column = np.arange(lanes[0] * lanes[1] if name == "local" else lanes[1], dtype=I64)
    words = np.full((-(-size // 4), column.size), UNWRITTEN, U32)
    return Space(name, words, column.reshape(lanes if name == "local" else (1, lanes[1])))
