"""Instructions that touch memory: loads, stores, atomics and asynchronous copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .machine import Machine, action, narrow
from .memory import WINDOW, Space
from .opcodes import I64, U32, UNSIGNED, Value
from .ptx import Op, Reg


def place(machine: Machine, op: Op, n: int, active: Value) -> tuple[Space, Value]:
    """The space and the addresses in it that source n of an instruction points at."""
    address = machine.value(op, n)
    if offset := op.sources[n].offset:
        address = address + I64.type(offset)
    for name in ("global", "shared", "local", "const", "param"):
        if name in op.mods or f"{name}_cta" in op.mods:
            symbol = op.sources[n].base
            if name == "param" and getattr(symbol, "space", "param") == "local":
                name = "local"  # the parameter of an inlined call
            return machine.spaces[name], address
    return generic(machine, op, address, active)


def generic(machine: Machine, op: Op, address: Value, active: Value) -> tuple[Space, Value]:
    """A generic address tells its space by its window; all lanes must agree."""
    number = address >> 40
    if active is True:
        low, high = number.min(), number.max()
    else:
        some = np.broadcast_to(number, np.broadcast_shapes(number.shape, active.shape))
        some = some[np.broadcast_to(active, some.shape)]
        low, high = some.min(), some.max()
    if low != high:
        detail = "one instruction reaches into two memory spaces, which sim does not support"
        machine.fault(op, "unknown opcode", detail, active)
    for name, window in WINDOW.items():
        if window >> 40 == low:
            return machine.spaces[name], address - window
    return machine.spaces["global"], address


def touch(
    machine: Machine,
    op: Op,
    space: Space,
    address: Value,
    size: int,
    active: Value,
    how: str,
    values: Any = (),
) -> None:
    """What every access passes: the counters, then the checks."""
    if machine.counters:
        machine.counters.access(machine, op, space, address, size, active, how)
    if machine.checks:
        machine.checks.access(machine, op, space, address, size, active, how, values)


def vector_size(op: Op) -> int:
    return 4 if "v4" in op.mods else 2 if "v2" in op.mods else 1


@action("ld", "ldu")
def load(machine: Machine, op: Op, active: Value) -> None:
    space, address = place(machine, op, 0, active)
    size = op.dtype.itemsize
    if space.name != "param":
        touch(machine, op, space, address, size * len(op.dests), active, "read")
    for i, dest in enumerate(op.dests):
        if dest is None:
            continue
        try:
            value = space.load(address + i * size, op.dtype, active)
        except IndexError:
            beyond(machine, op, space, address, size * len(op.dests), active)
        machine.write(op, dest, extend(value, dest), active)


def extend(value: Value, dest: Reg) -> Value:
    """To the register's width: with the sign if the type has one."""
    if dest.bits <= 8 * value.dtype.itemsize:
        return value
    kind = "i" if value.dtype.kind == "i" else "u"
    return value.view(f"{kind}{value.dtype.itemsize}").astype(f"{kind}{dest.bits // 8}")


@action("st")
def store(machine: Machine, op: Op, active: Value) -> None:
    space, address = place(machine, op, 0, active)
    unsigned = UNSIGNED[op.dtype.itemsize]
    size, count = op.dtype.itemsize, len(op.inputs) - 1
    values = [machine.value(op, 1 + i, unsigned) for i in range(count)]
    touch(machine, op, space, address, size * count, active, "write", values)
    for i, value in enumerate(values):
        try:
            space.store(address + i * size, value, active)
        except IndexError:
            beyond(machine, op, space, address, size * count, active)


def beyond(
    machine: Machine, op: Op, space: Space, address: Value, size: int, active: Value
) -> None:
    """Fault for the lanes whose address is not in the space at all."""
    outside = (address < 0) | (address + size > space.bytes)
    lanes = outside if active is True else np.logical_and(outside, active)

    def detail(thread: int, column: int) -> str:
        at = int(np.broadcast_to(address, machine.lanes)[thread, column])
        if space is machine.spaces["global"]:
            return f"touches {machine.launch.memory.where_is(at)}"
        return f"touches byte {at} of {space.bytes} bytes of {space.name} memory"

    machine.fault(op, "out of bounds", detail, lanes)


# --- atomics -----------------------------------------------------------------------------------

ATOMIC: dict[str, Any] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def _one(name: str, old: Any, value: Any, other: Any) -> Any:
    """What an atomic that is not a ufunc makes of the old value."""
    if name == "exch":
        return value
    if name == "cas":
        return other if old == value else old
    if name == "inc":
        return old.dtype.type(0) if old >= value else old + old.dtype.type(1)
    if name == "dec":
        return value if old == 0 or old > value else old - old.dtype.type(1)
    raise NotImplementedError(name)


@action("atom", "red")
def atomic(machine: Machine, op: Op, active: Value) -> None:
    """Lanes take their turns, block by block, thread by thread."""
    space, address = place(machine, op, 0, active)
    name = next(mod for mod in op.mods if mod in ATOMIC or mod in ("exch", "cas", "inc", "dec"))
    touch(machine, op, space, address, op.dtype.itemsize, active, "atomic")
    values = [machine.value(op, i, op.dtype) for i in range(1, len(op.inputs))]
    full = np.broadcast_to(True if active is True else active, machine.lanes).T
    spread = [np.broadcast_to(v, machine.lanes).T[full] for v in (address, *values)]
    columns = np.broadcast_to(0 if space.column is None else space.column, machine.lanes).T[full]
    if ((spread[0] < 0) | (spread[0] + op.dtype.itemsize > space.bytes)).any():
        beyond(machine, op, space, address, op.dtype.itemsize, active)
    cells, index = _cells(space, spread[0], columns, op.dtype)
    result = op.dests[0] if op.dests else None
    if name in ATOMIC and result is None:
        ATOMIC[name].at(cells, index, spread[1])
        _put_back(space, cells)
        return
    old = np.empty(len(index), op.dtype)
    ufunc = ATOMIC.get(name)
    third = spread[2] if len(spread) > 2 else spread[1]
    for i, (at, value, other) in enumerate(zip(index, spread[1], third, strict=True)):
        old[i] = before = cells[at]
        cells[at] = ufunc(before, value) if ufunc else _one(name, before, value, other)
    _put_back(space, cells)
    lanes = np.zeros(machine.lanes, op.dtype).T
    lanes[full] = old
    machine.write(op, result, lanes.T, active)


def _cells(space: Space, address: Value, column: Value, dtype: Any) -> tuple[Any, Any]:
    """Memory as a flat array of dtype and the index of each address in it."""
    if dtype.itemsize == 4:
        return space.words.reshape(-1).view(dtype), (address >> 2) * space.words.shape[1] + column
    if dtype.itemsize != 8:
        raise NotImplementedError("atomics of 16 bits")
    rows, columns = space.words.shape
    if columns == 1:
        even = space.words.reshape(-1)[: rows // 2 * 2]
        return even.view(dtype), address >> 3
    words = space.words[: rows // 2 * 2].reshape(-1, 2, columns)
    pairs = np.ascontiguousarray(words.transpose(0, 2, 1)).reshape(-1).view(dtype)
    return pairs, (address >> 3) * columns + column


def _put_back(space: Space, cells: np.ndarray) -> None:
    """64-bit cells of shared memory were a copy."""
    columns = space.words.shape[1]
    if cells.itemsize == 8 and columns > 1:
        pairs = cells.view(U32).reshape(-1, columns, 2)
        space.words[: 2 * len(pairs)] = pairs.transpose(0, 2, 1).reshape(-1, columns)


# --- asynchronous copies -----------------------------------------------------------------------


class Copy(NamedTuple):
    """A cp.async under way: it lands when its thread waits for its group."""

    op: Op
    group: Value  # number of the group, for each lane
    address: Value  # in shared memory
    words: list[Value]
    active: Value


@action("cp")
def copy_async(machine: Machine, op: Op, active: Value) -> None:
    """cp.async reads global memory now and writes shared memory at the wait, as late as it may."""
    if op.mods[:1] != ("async",):
        machine.fault(op, "unknown opcode", f"sim does not know `{op.text}`", active)
    if "commit_group" in op.mods:
        closed = machine.commits + 1
        machine.commits = closed if active is True else np.where(active, closed, machine.commits)
    elif "wait_all" in op.mods:
        land(machine, machine.commits + 1, active)
    elif "wait_group" in op.mods:
        land(machine, machine.commits - op.inputs[0].constant.astype(I64), active)
    else:
        shared, to = place_in(machine, op, 0, "shared")
        source, start = place_in(machine, op, 1, "global")
        size = int(op.inputs[2].constant)
        given = machine.value(op, 3, U32) if len(op.inputs) > 3 else U32.type(size)
        if op.mods[-1] == "ignore-src":
            machine.fault(op, "unknown opcode", f"sim does not know `{op.text}`", active)
        reads = narrow(active, given > 0)
        if reads is not None:
            touch(machine, op, source, start, size, reads, "read")
        if machine.counters:
            machine.counters.access(machine, op, shared, to, size, active, "write")
        words = []
        for i in range(0, size, 4):
            inside = narrow(active, given > i)
            word: Value = U32.type(0)
            if inside is not None:
                try:
                    word = source.load(start + i, U32, inside)
                except IndexError:
                    beyond(machine, op, source, start, size, inside)
                word = word if inside is True else np.where(inside, word, U32.type(0))
            words.append(word)
        if machine.checks:
            machine.checks.copy_begins(machine, op, shared, to, size, active)
        machine.copies.append(Copy(op, machine.commits, to, words, active))


def place_in(machine: Machine, op: Op, n: int, space: str) -> tuple[Space, Value]:
    address = machine.value(op, n)
    if offset := op.sources[n].offset:
        address = address + I64.type(offset)
    return machine.spaces[space], address


def land(machine: Machine, groups: Value, active: Value) -> None:
    """Write what the copies of groups below `groups` brought, for the lanes that waited."""
    remaining = []
    for copy in machine.copies:
        arrived = narrow(copy.active, copy.group < groups)
        arrived = None if arrived is None else narrow(arrived, True if active is True else active)
        if arrived is None:
            remaining.append(copy)
            continue
        space = machine.spaces["shared"]
        if machine.checks:
            machine.checks.copy_lands(
                machine, copy.op, space, copy.address, 4 * len(copy.words), arrived
            )
        for i, word in enumerate(copy.words):
            try:
                space.store(copy.address + 4 * i, word, arrived)
            except IndexError:
                beyond(machine, copy.op, space, copy.address, 4 * len(copy.words), arrived)
        if arrived is not True:
            rest = narrow(copy.active, np.logical_not(arrived))
            if rest is not None:
                remaining.append(copy._replace(active=rest))
    machine.copies = remaining


@action("membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard")
def no_effect(machine: Machine, op: Op, active: Value) -> None:
    """Memory is strongly ordered here, so a fence has nothing to do."""
    if machine.checks and op.name in ("membar", "fence"):
        machine.checks.fence(machine, op, active)


@action("isspacep")
def is_space(machine: Machine, op: Op, active: Value) -> None:
    number = machine.value(op, 0, I64) >> 40
    window = WINDOW.get(op.mods[0], 0) >> 40
    machine.write(op, op.dests[0], np.asarray(number == window), active)


@action("trap", "brkpt")
def trap(machine: Machine, op: Op, active: Value) -> None:
    machine.fault(op, "trap", "the kernel stopped itself (__trap or assert)", active)
