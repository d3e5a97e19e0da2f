"""Threads: how many there are, and who does what.

`run(job, arguments, count, parts)` cuts 0 .. count into parts, which the caller's thread and
long-lived workers take as they come. Jobs are machine code (jobs.py), so no GIL is needed to give
them out, and a worker looks out for the next for a while before he sleeps.

NumPy's BLAS has threads of its own, that must not meet ours: they would wait for each other by
spinning, which was measured to cost ten times the work itself. `one_blas_thread` keeps it to one.

How many threads: set_count(), else the first of VARIABLES that the environment has, else the cores
that this process may use.

Ctrl-C can raise an exception between any two calls in Python. So what must not be left half done is
`with` a lock or one call of C's, which CPython never parts, or it can be done again.

Work is cut by count() and sizes alone, and who runs a shard changes nothing in it, so results are
the same in every run with the same number of threads.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from minigan.system import cores

VARIABLES = (
    "MINIGAN_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

MOST = 1024  # threads
_chosen: int | None = None


def set_count(threads: int | None) -> None:
    """Use so many threads from now on; None: what the environment says."""
    global _chosen
    if threads is not None and not 1 <= threads <= MOST:
        raise ValueError(f"threads: must be 1 .. {MOST}, not {threads}")
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
        try:
            threads = int(first)
        except ValueError:
            threads = 0
        if 1 <= threads <= MOST:
            return threads
        if name == VARIABLES[0]:
            raise ValueError(f"{name} must be 1 .. {MOST} threads, not {os.environ[name]!r}")
    return min(cores(), MOST)


def split(n: int, shards: int) -> list[tuple[int, int]]:
    """0 .. n in `shards` parts whose lengths differ by one at most: (start, stop) of each."""
    return [(i * n // shards, (i + 1) * n // shards) for i in range(shards)]


# --------------------------------------------------------------------------------------- the pool

_LOOKS = 1 << 20  # for a task that a worker makes before he sleeps: a millisecond or so


class _Pool:
    """Workers and the words of memory that they share: see jobs.py."""

    def __init__(self, workers: int) -> None:
        from minigan.kernels import jobs

        self.jobs, self.workers = jobs, workers
        self.address, self.asleep = jobs.new_pool(workers)
        self.locks = [threading.Lock() for _ in range(workers)]  # a worker sleeps on his
        for worker in range(workers):
            self.locks[worker].acquire()
            # A daemon: one that waits keeps no interpreter from ending.
            name = f"minigan-{worker + 1}"
            threading.Thread(target=self._loop, args=(worker,), name=name, daemon=True).start()

    def _loop(self, worker: int) -> None:
        asleep = self.asleep[worker:].ctypes.data
        while True:
            self.jobs.serve(self.address, asleep, _LOOKS)
            self.locks[worker].acquire()

    def run(self, job: Any, arguments: tuple[Any, ...], count: int, parts: int) -> None:
        """See `run`."""
        try:
            if not job.start(self.address, job.address, arguments, count, parts):
                self._wake(min(parts - 1, self.workers))
                self._wait()
        except BaseException:  # a signal's
            self._wait()
            raise

    def _wake(self, workers: int) -> None:
        for worker in range(workers):  # he says that he is awake, when he is
            if self.asleep[worker] and self.locks[worker].locked():
                self.locks[worker].release()

    def _wait(self) -> None:
        """Help until all parts are done, even if a signal comes meanwhile: workers read our
        arguments."""
        interrupt = None
        while True:
            try:
                for turn in itertools.count():
                    if self.jobs.finished(self.address, 1 << 16):
                        break
                    if turn > 10:
                        time.sleep(1e-4)
                break
            except BaseException as signalled:
                interrupt = signalled
        if interrupt is not None:
            raise interrupt


_pool: _Pool | None = None
_free = threading.Lock()  # held by the one who is using the pool
_own = threading.local()  # a pool of no workers for each thread, for what is not shared


_planned: ContextVar[list[Any] | None] = ContextVar("minigan.planned", default=None)


@contextmanager
def planning() -> Iterator[list[Any]]:
    """Context manager: nothing is done inside; yields the list of the jobs that would be."""
    listed: list[Any] = []
    token = _planned.set(listed)
    try:
        yield listed
    finally:
        _planned.reset(token)


def run(job: Any, arguments: tuple[Any, ...], count: int, parts: int) -> None:
    """Do a job (see jobs.py) on 0 .. count in `parts` ranges, at the same time if that is possible.

    If another thread is using the workers, the caller does it all; the ranges are the same.
    """
    global _pool
    if not job.address:
        if (planned := _planned.get()) is not None:
            planned.append(job)
            return
        job.compile()
    if parts > 1 and not _free.locked():
        with _free:
            if _pool is None or _pool.workers < parts - 1:
                _pool = _Pool(parts - 1)
            _pool.run(job, arguments, count, parts)
        return
    alone = getattr(_own, "pool", None)
    if alone is None:
        alone = _own.pool = _Pool(0)
    alone.run(job, arguments, count, parts)


def _forget() -> None:
    """In a forked child only the thread that forked lives on."""
    global _free, _pool
    _pool = None
    _free = threading.Lock()
    _limit.lock = threading.RLock()
    _limit.inside &= {threading.get_ident()}


# ------------------------------------------------------------------------------------------- BLAS


class _BlasLimit:
    """Which threads want NumPy's BLAS at one thread, and what to give back when none does.

    What is not given back, since an interrupt came or since threadpoolctl heeds one thread alone,
    the next to leave gives back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside: set[int] = set()
        self.libraries: list[Any] | None = None
        self.before: list[int] = []

    def take(self) -> None:
        with self.lock:
            if self.libraries is None:
                from threadpoolctl import ThreadpoolController

                controllers = ThreadpoolController().lib_controllers
                self.libraries = [c for c in controllers if c.user_api == "blas"]
            if not self.before:
                self.before = [c.get_num_threads() for c in self.libraries]
            for c in self.libraries:
                c.set_num_threads(1)

    def give_back(self) -> None:
        with self.lock:
            if self.inside or not self.before:
                return
            for c, n in zip(self.libraries or (), self.before, strict=True):
                c.set_num_threads(n)
            if [c.get_num_threads() for c in self.libraries or ()] == self.before:
                self.before = []


_limit = _BlasLimit()

P = ParamSpec("P")
R = TypeVar("R")


def one_blas_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: BLAS runs on its caller's thread alone meanwhile, and as before after it.

    Around a whole training step, it saves each kernel the switching, which takes microseconds.
    """

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        me, inside = threading.get_ident(), _limit.inside
        if me in inside:
            return function(*args, **kwargs)
        try:
            inside.add(me)
            _limit.take()
            return function(*args, **kwargs)
        finally:
            inside.discard(me)
            _limit.give_back()

    return limited


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
