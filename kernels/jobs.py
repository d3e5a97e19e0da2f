"""Compiled jobs, and how threads share them: between two shards there is no Python and no GIL.

A kernel is a function of arrays and numbers that works on a range of rows or images:

    @job("v v f")
    def scale(x, y, s, first, last, part): ...

`job` says the types of its arguments; the range and the number of its shard come last. Numba makes
machine code of it that finds its arguments in memory, so that all jobs are called alike, by
address. `start` leaves the arguments there, raises a counter that the workers are watching, does
the first shard itself, and waits for the others: two microseconds, where waking a thread that
sleeps takes fifty. Who the workers are, and when they sleep, is in threads.py.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, sigutils, types
from numba.extending import intrinsic

_TYPES = {
    "v": "float32[::1]", "m": "float32[:,::1]", "d": "float64[:,::1]", "t": "int64[:,::1]",
    "i": "int64", "f": "float64", "g": "UniTuple(int64, 13)",
}  # fmt: skip

_word = ir.IntType(64)


@cache
def _tuple_type(kinds: str) -> Any:
    listed = ", ".join(_TYPES[kind] for kind in kinds.split())
    return types.Tuple(sigutils.normalize_signature(f"void({listed})")[0])


# ---------------------------------------------------------------------------------------- machine


@intrinsic
def _load(_: Any, address: Any) -> Any:
    """The word there, as other threads see it now."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _word.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store(_: Any, address: Any, value: Any) -> Any:
    """Put a word there, for other threads to see, with all that was written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _word.as_pointer())
        builder.store_atomic(arguments[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _leave(_: Any, arguments: Any, address: Any) -> Any:
    """Write the tuple there, its arrays without their reference counts: a worker may still be at
    work when `start` returns, and only who called it keeps them alive."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        listed, at = values
        for i, kind in enumerate(arguments):
            if isinstance(kind, types.Array):
                array = context.make_array(kind)(context, builder, builder.extract_value(listed, i))
                array.meminfo = cgutils.get_null_value(array.meminfo.type)
                array.parent = cgutils.get_null_value(array.parent.type)
                listed = builder.insert_value(listed, array._getvalue(), i)
        builder.store(listed, builder.inttoptr(at, listed.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(arguments, types.int64), generate


@intrinsic
def _call(_: Any, code: Any, arguments: Any, first: Any, last: Any, part: Any) -> Any:
    """Call the job whose address is `code`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_word] * 4)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic(prefer_literal=True)  # type: ignore[call-overload]
def _invoke(typing: Any, name: Any, version: Any, at: Any, first: Any, last: Any, part: Any) -> Any:
    """Call the kernel of that name with the arguments that lie at `at`."""
    chosen = _jobs[name.literal_value]
    listed = _tuple_type(chosen.kinds)
    kernel = numba.typeof(chosen.kernel)
    inner = kernel.get_call_type(typing, (*listed, first, last, part), {})

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(listed)
        kept = builder.load(builder.inttoptr(values[2], kind.as_pointer()))
        function = context.get_function(kernel, inner)
        context.add_linking_libs(getattr(function, "libs", ()))
        function(builder, [*cgutils.unpack_tuple(builder, kept), *values[3:]])
        return context.get_dummy_value()

    return types.void(name, version, at, first, last, part), generate


# ------------------------------------------------------------------------------------------- jobs

_tell_once = threading.Lock()
_told = False


def _tell_uncached(reason: object) -> None:
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"compiled CPU kernels cannot be kept ({reason}), so every run compiles them again: "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=3,
        )


def _kept(decorate: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    """The decorator `decorate(*args, **options)`, its result kept for the next run if possible."""

    def decorator(function: Callable[..., Any]) -> Any:
        try:
            return decorate(*args, cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder that it may write to
            _tell_uncached("no folder for them can be written")
        except OSError as error:  # compiled, but not saved: a full disk, say
            _tell_uncached(error)
        return decorate(*args, **options)(function)

    return decorator


class Job:
    """A kernel that threads can share. Calling it does it all, on this thread: for other kernels.

    address: of its machine code, once `prepare` has run; it is called with the address of its
    arguments, first, last and part.
    """

    def __init__(self, kernel: Any, name: str, kinds: str) -> None:
        self.kernel, self.name, self.kinds = kernel, name, kinds
        self.address = 0

    def compile(self, version: str) -> None:
        if self.address:
            return
        name = self.name

        @_kept(numba.cfunc, "void(int64, int64, int64, int64)")
        def code(at, first, last, part):  # type: ignore[no-untyped-def]
            _invoke(name, version, at, first, last, part)

        self.code = code
        self.address = code.address
        signature = (types.int64, types.int64, _tuple_type(self.kinds), *[types.int64] * 3)
        try:
            start.compile(signature)
        except OSError as error:
            _tell_uncached(error)


_jobs: dict[str, Job] = {}
_lock = threading.Lock()
_ready = False


def job(kinds: str) -> Callable[[Callable[..., None]], Any]:
    """Decorator: this is a job whose arguments before first, last and part are of these types.

    v, m: float32 (n,), (m,n)   d, t: float64, int64 (m,n)   i, f: int64, float64   g: 13 of int64
    """

    def decorate(function: Callable[..., None]) -> Any:
        kernel = numba.njit(nogil=True, error_model="numpy")(function)
        return _jobs.setdefault(function.__name__, Job(kernel, function.__name__, kinds))

    return decorate


def _text(code: Any) -> str:
    """What a code object does, line numbers left out."""
    constants = [_text(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return f"{code.co_code!r}{code.co_names}{constants}"


def _version() -> str:
    """A hash of all that kernels are made of, for Numba to keep them by: what is loaded, which may
    be older than the files."""
    own = {each.kernel.__module__ for each in _jobs.values()}
    used = (
        getattr(v, "__module__", None) or "" for m in own for v in vars(sys.modules[m]).values()
    )
    own |= {name for name in used if name.startswith(f"{__package__}.")}
    texts = []
    for module in map(sys.modules.__getitem__, own):
        for name, value in vars(module).items():
            if isinstance(value, int | tuple):
                texts.append(f"{name}{value}")
            for part in vars(value).values() if isinstance(value, type) else (value,):
                part = getattr(part, "kernel", part)  # of a job
                part = getattr(part, "py_func", getattr(part, "_defn", part))  # of Numba's
                if code := getattr(part, "__code__", None):
                    texts.append(_text(code))
    return hashlib.sha256("".join(sorted(texts)).encode()).hexdigest()[:16]


def prepare(progress: Callable[[int, int], None] | None = None) -> None:
    """Compile all jobs, or load them as an earlier run left them.

    progress: called with (jobs that are ready, jobs in all) after each.
    """
    global _ready
    with _lock:
        if _ready:
            return
        version = _version()
        for i, each in enumerate(_jobs.values()):
            each.compile(version)
            if progress is not None:
                progress(i + 1, len(_jobs))
        start.disable_compile()  # other types are a bug here, not one more compilation
        _ready = True


# ------------------------------------------------------------------------------------- the waiting
# A pool is an array of words. Its first row is the task, the row of a worker what he and the one
# who gives out tasks tell each other; rows are lines of cache, and those between hold arguments.

ROW = 8  # words
CODE, COUNT, PARTS = range(3)  # in the first row
GO, DONE, ASLEEP = range(3)  # in a worker's: tasks given, tasks done, whether he sleeps
ARGUMENTS = 64  # rows of arguments, after the first


def new_pool(workers: int) -> Any:
    """The words that a pool of so many workers, numbered from 0, shares."""
    words = np.zeros((1 + ARGUMENTS + workers + 1) * ROW, np.int64)
    skipped = -(words.ctypes.data // 8) % ROW  # the first line of cache may have begun before it
    return words[skipped : skipped + (1 + ARGUMENTS + workers) * ROW].reshape(-1, ROW)


@numba.njit
def _row(pool, worker):  # type: ignore[no-untyped-def]
    """Its address, pool being that of the first row."""
    return pool + 8 * ROW * (1 + ARGUMENTS + worker)


@numba.njit
def _do(code, arguments, count, parts, part):  # type: ignore[no-untyped-def]
    _call(code, arguments, part * count // parts, (part + 1) * count // parts, part)


@_kept(numba.njit, ["boolean(int64, int64, int64)"], nogil=True)
def finished(pool, shared, turns):  # type: ignore[no-untyped-def]
    """Whether so many workers are done with the task, now or within so many looks."""
    for worker in range(shared):
        row = _row(pool, worker)
        while _load(row + 8 * DONE) != _load(row + 8 * GO):
            turns -= 1
            if turns < 0 or _load(row + 8 * ASLEEP):
                return False
    return True


@_kept(numba.njit, nogil=True)
def start(pool, code, arguments, count, parts, shared):  # type: ignore[no-untyped-def]
    """Do a job in `parts` shards of 0 .. count. Returns whether it is done: see `finished`.

    pool: its address.   code: that of the job.   shared: how many shards the workers take.
    """
    at = pool + 8 * ROW
    _leave(arguments, at)
    if shared:
        _store(pool + 8 * CODE, code)
        _store(pool + 8 * COUNT, count)
        _store(pool + 8 * PARTS, parts)
        for worker in range(shared):
            to = _row(pool, worker) + 8 * GO
            _store(to, _load(to) + 1)
    _do(code, at, count, parts, 0)
    for part in range(1 + shared, parts):
        _do(code, at, count, parts, part)
    return finished(pool, shared, 1 << 16)


@_kept(numba.njit, ["void(int64, int64, int64)"], nogil=True)
def serve(pool, worker, turns):  # type: ignore[no-untyped-def]
    """Do a worker's shards, until after so many looks there is none: he is ASLEEP then."""
    row = _row(pool, worker)
    done = _load(row + 8 * DONE)
    _store(row + 8 * ASLEEP, 0)
    while True:
        looks = 0
        while _load(row + 8 * GO) == done:
            looks += 1
            if looks > turns:
                _store(row + 8 * ASLEEP, 1)
                if _load(row + 8 * GO) == done:
                    return
                _store(row + 8 * ASLEEP, 0)
        code, count, parts = (
            _load(pool + 8 * CODE),
            _load(pool + 8 * COUNT),
            _load(pool + 8 * PARTS),
        )
        _do(code, pool + 8 * ROW, count, parts, worker + 1)
        done += 1
        _store(row + 8 * DONE, done)
