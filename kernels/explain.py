"""What a fault of a kernel means, for someone who meets it for the first time."""

from __future__ import annotations

import re
from typing import NamedTuple

from minigan.kernels.sim import Fault


class Lesson(NamedTuple):
    """why: it is a bug even where a GPU seems to run it.   mend: what to do about it."""

    why: str
    mend: str


LESSONS = {
    "race": Lesson(
        "The threads of a block do not run in step: warps (32 threads each) run in any order, and "
        "one may be far ahead of another. Two threads touch the same memory here, at least one "
        "of them writes, and nothing says who comes first: the result depends on luck. On a GPU "
        "this may work a thousand times, and fail on another card or with a larger block.",
        "Put a __syncthreads() between the two lines: all threads of the block wait there until "
        "everyone has come, and see all that was written before it. Every thread must reach it, so "
        "it stands outside of any if that not all threads take. In a loop it often takes two: "
        "after the write (before others read), and after the read (before the next round writes). "
        "If the threads should all add to one place, use atomicAdd, or add within the block first.",
    ),
    "race between blocks": Lesson(
        "Blocks run in any order, at the same time or long after each other, and no barrier joins "
        "them: __syncthreads() is for the threads of one block. Two blocks touch the same global "
        "memory here, and at least one of them writes.",
        "Have each block write a place of its own, and combine the results in a second kernel: a "
        "launch sees all that the launch before it wrote. Or use atomicAdd, where the order of "
        "additions, and so the last bits of a float sum, will differ from run to run.",
    ),
    "out of bounds": Lesson(
        "A thread touches memory that is not part of the array. A GPU may not notice: it reads "
        "garbage or overwrites another array, and the error shows elsewhere, if at all.",
        "The grid is rounded up to whole blocks, so the last block has threads beyond the end: "
        "guard them with `if (i >= n) return;` (before the first barrier: with `if (i < n)` around "
        "the access). Else look at the index: an off-by-one, a halo, rows and columns swapped.",
    ),
    "misaligned access": Lesson(
        "A float4 is read or written 16 bytes at once, and its address must be a multiple of 16 "
        "(float2: of 8). A GPU stops the kernel with `misaligned address`.",
        "Make the index into the float array a multiple of 4, pad rows to a multiple of 4 floats, "
        "declare shared arrays with __align__(16), or load the floats one by one.",
    ),
    "read of unwritten memory": Lesson(
        "Nothing has written this memory before it is read. On a GPU it holds whatever the last "
        "kernel left there: often zeros, which is why such a bug hides.",
        "Write it first: shared memory by the threads of this block, then __syncthreads(); an "
        "array made by empty() by a kernel before. Look for a tile that is filled only in part, "
        "or a sum that is not set to 0.",
    ),
    "read of a copy under way": Lesson(
        "cp.async copies in the background. Until the thread that began the copy has waited for "
        "it, what it copies to holds the old values, the new ones, or some of both.",
        "Wait for the group (cp.async.wait_group N leaves the N newest groups under way: is N one "
        "too many?), and then __syncthreads(), so that the copies of other threads are there too.",
    ),
    "barrier not reached by all": Lesson(
        "__syncthreads() waits for every thread of the block. Some threads wait at it and others "
        "never come: they returned or took another branch. A GPU hangs, or goes on wrongly.",
        "Move the barrier out of the if, or the early `return` behind the last barrier: let the "
        "idle threads skip the work, but not the barrier.",
    ),
    "write to a read-only array": Lesson(
        "The kernel writes an array that was given as read-only.",
        "Is it the right argument? Are the arguments in the order of the kernel's parameters?",
    ),
    "trap": Lesson(
        "The kernel stopped itself, by __trap() or a failed assert().",
        "See the condition in the line above.",
    ),
    "unknown opcode": Lesson(
        "sim does not know this instruction of the compiler's PTX; the kernel may well be right.",
        "Try another way to write the line, or run it on a card.",
    ),
}


_DYNAMIC = Lesson(
    "An `extern __shared__` array has as many bytes as the launch gives it: this one gave none.",
    "Give the bytes with --shared: for a float a thread, 4 times the block. In CUDA it is the "
    "third number of <<<grid, block, bytes>>>.",
)

_UPDATE = Lesson(
    "One line both reads and writes here. Between the read of one thread and its write, another "
    "thread may read the old value too: then one of the two updates is lost.",
    "Use atomicAdd (or atomicMax, atomicExch...), which reads and writes in one; or have each "
    "thread work on a place of its own, and add those up after a __syncthreads() or in a second "
    "kernel.",
)


def lesson(fault: Fault) -> Lesson:
    """What there is to learn from a fault."""
    text = str(fault)
    if "shared memory of 0 bytes" in text:
        return _DYNAMIC
    if fault.kind.startswith("race") and re.search(rf"\bread\b in line {fault.line}\b", text):
        return _UPDATE
    if fault.kind == "race between blocks" and "__syncthreads()" in text:
        return LESSONS["race"]  # the lane that it tells of races within its block too
    return LESSONS.get(fault.kind, Lesson("", ""))


def other_lines(fault: Fault) -> list[int]:
    """Lines beside fault.line that the message names: the other party of a race."""
    detail = str(fault).partition("\n")[2]
    return [int(n) for n in re.findall(r"\bline (\d+)", detail) if int(n) != fault.line]


def excerpt(source: str, lines: list[int], around: int = 2) -> list[tuple[int, str, bool]]:
    """(number, text, marked) of the lines and those around them; gaps are left out."""
    text = source.splitlines()
    near = sorted(
        {
            n
            for line in lines
            for n in range(line - around, line + around + 1)
            if 1 <= n <= len(text)
        }
    )
    return [(n, text[n - 1], n in lines) for n in near]
