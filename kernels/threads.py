"""Threads: the one place that decides what runs on which core.

`run(task, shards)` calls task(0) .. task(shards - 1), each on a core of its own: the caller's
thread takes the first, long-lived workers the others. A task releases the GIL by spending its time
in compiled loops and in BLAS. Meanwhile BLAS is held at one thread, because its own threads and
ours would wait for each other by spinning, which was measured to cost ten times the work itself.

How many threads: set_count(), else the environment's MINIGAN_NUM_THREADS, OMP_NUM_THREADS or
OPENBLAS_NUM_THREADS, else the cores that this process may use.

Work is cut by count() and sizes alone, and who runs a shard changes nothing in it, so results are
the same in every run with the same number of threads.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigan.system import cores

VARIABLES = ("MINIGAN_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Task = Callable[[int], None]

_chosen: int | None = None


def set_count(threads: int | None) -> None:
    """Use so many threads from now on; None: what the environment says."""
    global _chosen
    if threads is not None and threads < 1:
        raise ValueError(f"threads: must be at least 1, not {threads}")
    _chosen = threads


def count() -> int:
    """How many threads compute."""
    global _chosen
    if _chosen is None:
        _chosen = _from_environment()
    return _chosen


def _from_environment() -> int:
    for name in VARIABLES:
        first = os.environ.get(name, "").partition(",")[0].strip()  # OMP's is a list, by level
        if not first:
            continue
        if first.isdigit() and int(first):
            return int(first)
        if name == VARIABLES[0]:
            raise ValueError(f"{name} must be a number of threads, not {os.environ[name]!r}")
    return cores()


def split(n: int, shards: int) -> list[tuple[int, int]]:
    """0 .. n in `shards` parts whose lengths differ by one at most: (start, stop) of each."""
    return [(i * n // shards, (i + 1) * n // shards) for i in range(shards)]


# --------------------------------------------------------------------------------------- the pool


# Waiting without sleep, for some 100 µs: compiled.spin, once it is there (see kernels/cpu.py). A
# thread that sleeps is woken late, and finds its core's cache full of another program's data.
spin: Callable[[Any, int, int, Any], None] | None = None
_SPINS = 1 << 17


class _Signal:
    """A counter, and one thread that waits until it has reached some number."""

    def __init__(self) -> None:
        self.count = np.zeros(1, np.int64)
        self.lock = threading.Lock()
        self.lock.acquire()
        self.asleep = False

    def send(self) -> None:
        self.count[0] += 1
        if self.asleep and self.lock.locked():
            self.lock.release()

    def wait(self, number: int, spinning: bool) -> None:
        """Until `number` have been sent."""
        if spinning and spin is not None:
            reached = np.zeros(1, np.int64)
            spin(self.count, number, _SPINS, reached)
        self.asleep = True  # before the check: who sends after it will wake this thread
        while self.count[0] < number:
            self.lock.acquire()
        self.asleep = False


class _Worker:
    """A thread that waits for one task after another."""

    def __init__(self, number: int) -> None:
        self.started = 0
        self.go, self.done = _Signal(), _Signal()
        self.task: Callable[[], None]
        self.error: BaseException | None = None
        # A daemon: one that waits keeps no interpreter from ending.
        threading.Thread(target=self._loop, name=f"minigan-{number}", daemon=True).start()

    def _loop(self) -> None:
        for number in itertools.count(1):
            self.go.wait(number, spinning=False)
            try:
                self.task()
            except BaseException as error:
                self.error = error
            del self.task  # and with it the arrays that it holds
            self.done.send()

    def start(self, task: Task, shard: int) -> None:
        context = contextvars.copy_context()  # NumPy's errstate is in it
        self.task = lambda: context.run(task, shard)
        self.started += 1
        self.go.send()

    def wait(self) -> BaseException | None:
        """The error of its task, once that has ended, even if a signal comes meanwhile."""
        interrupt = None
        while self.done.count[0] < self.started:
            try:
                self.done.wait(self.started, spinning=True)
            except BaseException as signalled:
                interrupt = signalled
        error, self.error = self.error, None
        return interrupt or error


_workers: list[_Worker] = []
_free = threading.Lock()  # held by the one who is using the workers


def run(task: Task, shards: int) -> None:
    """Call task(i) for each shard i < shards, at the same time where that is possible.

    If the workers are in use (by another thread, or a task that calls run), the caller does it all.
    The first error is raised when all have ended.
    """
    with one_blas_thread():
        if shards == 1 or not _free.acquire(blocking=False):
            for i in range(shards):
                task(i)
            return
        try:
            while len(_workers) < shards - 1:
                _workers.append(_Worker(len(_workers) + 1))
            errors = []
            started = _workers[: shards - 1]
            for i, worker in enumerate(started):
                worker.start(task, i + 1)
            try:
                task(0)
            except BaseException as error:
                errors.append(error)
            errors += [failed for worker in started if (failed := worker.wait())]
        finally:
            _free.release()
        if errors:
            raise errors[0]


def _forget() -> None:
    """In a forked child only the thread that forked lives on."""
    global _free, _limit
    _workers.clear()
    _free = threading.Lock()
    _limit = _BlasLimit()


# ------------------------------------------------------------------------------------------- BLAS


class _BlasLimit:
    """How many hold NumPy's BLAS at one thread, and what to give back when none does."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.libraries: list[Any] | None = None
        self.before: list[int] = []

    def hold(self) -> None:
        with self.lock:
            self.holders += 1
            if self.holders > 1:
                return
            if self.libraries is None:
                from threadpoolctl import ThreadpoolController

                controllers = ThreadpoolController().lib_controllers
                self.libraries = [c for c in controllers if c.user_api == "blas"]
            self.before = [c.get_num_threads() for c in self.libraries]
            for c in self.libraries:
                c.set_num_threads(1)

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders or self.libraries is None:
                return
            for c, n in zip(self.libraries, self.before, strict=True):
                c.set_num_threads(n)


_limit = _BlasLimit()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Context manager: BLAS runs on its caller's thread alone inside, and as before after it.

    Held for a whole training, it saves each kernel the switching, which takes microseconds.
    """
    _limit.hold()
    try:
        yield
    finally:
        _limit.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
