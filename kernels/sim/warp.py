"""Instructions in which the lanes of a warp, or of a block, work together."""

from __future__ import annotations

from typing import Any

import numpy as np

from .machine import WARP, Machine, action
from .opcodes import F16, F32, F64, I32, U16, U32, Value
from .ptx import Op


@action("bar", "barrier")
def barrier(machine: Machine, op: Op, active: Value) -> None:
    """bar.sync, bar.warp.sync, and bar.red, which votes over the block."""
    if "warp" in op.mods:
        if machine.checks:
            machine.checks.warp_sync(machine, op, active)
        return
    if "arrive" in op.mods or ("sync" in op.mods and len(op.inputs) > 1):
        detail = f"sim knows barriers of the whole block only, not `{op.text}`"
        machine.fault(op, "unknown opcode", detail, active)
    if machine.checks:
        machine.checks.block_sync(machine, op, active)
    if "red" in op.mods:
        truth = np.broadcast_to(machine.value(op, len(op.inputs) - 1), machine.lanes)
        votes = truth.sum(axis=0, keepdims=True, dtype=U32)
        everyone = U32.type(machine.threads)
        result = {"popc": votes, "and": votes == everyone, "or": votes > 0}
        machine.write(op, op.dests[0], next(result[m] for m in op.mods if m in result), active)


@action("activemask")
def activemask(machine: Machine, op: Op, active: Value) -> None:
    """The lanes that run together now. Real cards may split a warp further; never rely on it."""
    machine.write(op, op.dests[0], machine.ballot(active), active)


@action("shfl")
def shuffle(machine: Machine, op: Op, active: Value) -> None:
    """d|p = a of lane j; p tells whether j is within the segment (else a stays)."""
    a, b, c = (machine.value(op, i, U32) for i in range(3))
    sync(machine, op, active)
    lane = machine.thread % WARP
    b, c = b.astype(np.int64) & 31, c.astype(np.int64)
    clamp, segment = c & 31, c >> 8 & 31
    low, high = lane & segment, (lane & segment) | (clamp & ~segment)
    if "up" in op.mods:
        source, inside = lane - b, lane - b >= high
    elif "down" in op.mods:
        source, inside = lane + b, lane + b <= high
    elif "bfly" in op.mods:
        source, inside = lane ^ b, (lane ^ b) <= high
    else:
        source = low | (b & ~segment)
        inside = source <= high
    source = np.where(inside, source, lane)
    values = machine.by_warp(a, 0)
    if source.shape[1] == 1:  # the same lanes in all blocks
        picked = values.reshape(-1, values.shape[2])[(machine.thread // WARP * WARP + source)[:, 0]]
    else:
        values = np.broadcast_to(values, (*values.shape[:2], machine.blocks))
        picked = machine.by_lane(np.take_along_axis(values, machine.by_warp(source, 0), axis=1))
    machine.write(op, op.dests[0], picked, active)
    if len(op.dests) > 1:
        machine.write(op, op.dests[1], inside, active)


def sync(machine: Machine, op: Op, active: Value) -> None:
    """The lanes of the member mask have met; tell the checks."""
    if machine.checks:
        machine.checks.warp_sync(machine, op, active)


@action("vote")
def vote(machine: Machine, op: Op, active: Value) -> None:
    truth = machine.value(op, 0)
    sync(machine, op, active)
    ballot = machine.ballot(np.logical_and(truth, active)) & machine.members(op)
    if "ballot" in op.mods:
        result: Value = ballot
    elif "any" in op.mods:
        result = ballot != 0
    elif "all" in op.mods:
        result = ballot == machine.members(op)
    else:
        result = (ballot == 0) | (ballot == machine.members(op))
    machine.write(op, op.dests[0], result, active)


@action("match")
def match(machine: Machine, op: Op, active: Value) -> None:
    """any: the members with my value. all: every member, if they all have it, else 0."""
    sync(machine, op, active)
    values = machine.by_warp(machine.value(op, 0, op.dtype), 0)
    equal = values[:, :, None] == values[:, None, :]  # (warps, mine, theirs, blocks)
    bits = equal.astype(U32) << np.arange(WARP, dtype=U32).reshape(1, 1, -1, 1)
    members = machine.members(op)
    same = machine.by_lane(np.bitwise_or.reduce(bits, axis=2)) & members
    if "all" in op.mods:
        agree = same == members
        machine.write(op, op.dests[0], np.where(agree, members, U32.type(0)), active)
        if len(op.dests) > 1:
            machine.write(op, op.dests[1], agree, active)
    else:
        machine.write(op, op.dests[0], same, active)


@action("redux")
def redux(machine: Machine, op: Op, active: Value) -> None:
    """A reduction over the members of the warp, in integers."""
    sync(machine, op, active)
    ufunc, fill = {
        "add": (np.add, 0), "min": (np.minimum, None), "max": (np.maximum, None),
        "and": (np.bitwise_and, None), "or": (np.bitwise_or, 0), "xor": (np.bitwise_xor, 0),
    }[op.mods[1]]  # fmt: skip
    values = machine.by_warp(machine.value(op, 0, op.dtype), 0)
    if fill is None:
        limits = np.iinfo(op.dtype)
        fill = limits.min if ufunc is np.maximum else limits.max
        fill = -1 if ufunc is np.bitwise_and and op.dtype == I32 else fill
    members = machine.by_warp(machine.members(op), 0)
    result = np.zeros_like(values)
    for mask in np.unique(members):
        lanes = (mask >> np.arange(WARP, dtype=U32) & U32.type(1)).astype(bool).reshape(1, -1, 1)
        total = ufunc.reduce(np.where(lanes, values, op.dtype.type(fill)), axis=1, keepdims=True)
        result = np.where(members == mask, total.astype(op.dtype), result)
    machine.write(op, op.dests[0], machine.by_lane(result), active)


# --- tensor cores ------------------------------------------------------------------------------


@action("mma")
def mma(machine: Machine, op: Op, active: Value) -> None:
    """d = a·b + c over a warp: a (16, k), b (k, 8), c and d (16, 8), each lane holding a part.

    Lane = 4·group + t. c: rows group, group+8; columns 2t, 2t+1. a, b of 32 bits: k = t, t+4 ..;
    of 16 bits: pairs k = 2t, 2t+1, then +8 (PTX ISA, "Matrix fragments for mma.m16n8k8").
    tf32 operands: the low 13 bits are ignored. Products are exact, their sum is rounded once.
    """
    kind = op.types[1]
    shape = next(mod for mod in op.mods if mod.startswith("m16"))
    known = {("m16n8k4", "tf32"), ("m16n8k8", "tf32"), ("m16n8k8", "f16"), ("m16n8k16", "f16"),
             ("m16n8k8", "bf16"), ("m16n8k16", "bf16")}  # fmt: skip
    if (shape, kind) not in known or op.types[0] != "f32":
        machine.fault(op, "unknown opcode", f"sim does not know `{op.text}`", active)
    sync(machine, op, active)
    k = int(shape.partition("k")[2])
    counts = [len(source) for source in op.sources]
    values = [machine.by_warp(machine.value(op, i, U32), 0) for i in range(sum(counts))]
    a_parts, b_parts = values[: counts[0]], values[counts[0] : counts[0] + counts[1]]
    c_parts = values[counts[0] + counts[1] :]

    lane = np.arange(WARP)
    group, t = lane // 4, lane % 4
    warps, blocks = a_parts[0].shape[0], max(part.shape[2] for part in values)
    a = np.zeros((warps, blocks, 16, k))
    b = np.zeros((warps, blocks, k, 8))
    c = np.zeros((warps, blocks, 16, 8))
    for i, part in enumerate(a_parts):
        for j, number in enumerate(_unpack(part, kind)):
            row = group + 8 * (i % 2)
            column = t + 4 * (i // 2) if kind == "tf32" else 2 * t + j + 8 * (i // 2)
            a[:, :, row, column] = number.transpose(0, 2, 1)
    for i, part in enumerate(b_parts):
        for j, number in enumerate(_unpack(part, kind)):
            row = t + 4 * i if kind == "tf32" else 2 * t + j + 8 * i
            b[:, :, row, group] = number.transpose(0, 2, 1)
    for i, part in enumerate(c_parts):
        c[:, :, group + 8 * (i // 2), 2 * t + i % 2] = part.view(F32).transpose(0, 2, 1)
    d = (a @ b + c).astype(F32)
    for i, dest in enumerate(op.dests):
        part = d[:, :, group + 8 * (i // 2), 2 * t + i % 2].transpose(0, 2, 1)
        machine.write(op, dest, machine.by_lane(part), active)


def _unpack(part: np.ndarray, kind: str) -> list[Any]:
    """The one or two numbers in 32 bits, as float64."""
    if kind == "tf32":
        return [(part & ~U32.type((1 << 13) - 1)).view(F32).astype(F64)]
    halves = [part & U32.type(0xFFFF), part >> U32.type(16)]
    if kind == "bf16":
        return [(half << U32.type(16)).view(F32).astype(F64) for half in halves]
    return [half.astype(U16).view(F16).astype(F64) for half in halves]
