"""How much work makes a shard, and the space that shards compute in."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from minigan.kernels import loading, threads

Array = Any

# A shard must be worth the 2 µs that giving it out takes: at least this many floats, of which
# a loop moves 2 to 8 a nanosecond. PRODUCTS multiplications are done while a float is moved.
LEAST = 1 << 14
PRODUCTS = 16


def count(parts: int, work: int) -> int:
    """Among how many threads to share `parts` images or rows that are `work` floats in all."""
    return max(1, min(threads.count(), parts, work // LEAST))


def share(job: Any, arguments: tuple[Any, ...], parts: int, work: int) -> int:
    """Do a job on all of `parts`, which are `work` floats. Returns among how many it was shared."""
    shards = count(parts, work)
    threads.run(job, arguments, parts, shards)
    return shards


_own = threading.local()


def space(shards: int, floats: int, addresses: int) -> tuple[Array, Array]:
    """float32 (shards,≥floats) and int64 (shards,≥addresses) of anything, this thread's until it
    asks again: new pages would cost time. The floats are a vector more."""
    flat, table = getattr(_own, "space", (np.empty(0, np.float32), np.empty(0, np.int64)))
    floats += loading.gemm.LANES
    if flat.size < shards * floats or table.size < shards * addresses:
        flat = np.empty(max(flat.size, shards * floats), np.float32)
        table = np.empty(max(table.size, shards * addresses), np.int64)
        _own.space = flat, table
    return (
        flat[: shards * floats].reshape(shards, -1),
        table[: shards * addresses].reshape(shards, -1),
    )


def sums(channels: int) -> Array:
    """float64 (threads, ≥channels), a row for each shard to sum in. Gaps keep the rows from sharing
    a line of cache, which would travel between the cores with every addition."""
    return np.empty((threads.count(), channels + 32))
