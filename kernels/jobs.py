"""Compiled jobs, and how threads share them: between two shards there is no Python and no GIL.

A kernel is a function of arrays and numbers that works on a range of rows or images:

    @job("v v f")
    def scale(x, y, s, first, last, part): ...

`job` says the types of its arguments; the range and the number of its shard come last. Numba makes
machine code of it that finds its arguments in memory, so that all jobs are called alike, by
address. `start` leaves the arguments there and changes a word that the workers are watching: two
microseconds, where waking a thread that sleeps takes fifty. Who the workers are, and when they
sleep, is in threads.py.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, sigutils, types
from numba.core.compiler import Flags, compile_internal
from numba.extending import intrinsic

_TYPES = {
    "v": "float32[::1]", "m": "float32[:,::1]", "d": "float64[:,::1]", "t": "int64[:,::1]",
    "i": "int64", "f": "float64", "g": "UniTuple(int64, 13)",
}  # fmt: skip

_word = ir.IntType(64)


@cache
def _tuple_type(kinds: str) -> Any:
    listed = ", ".join(_TYPES[kind] for kind in kinds.split())
    return numba.types.Tuple(sigutils.normalize_signature(f"void({listed})")[0])


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
def _add(_: Any, address: Any, value: Any) -> Any:
    """Add to the word there, whatever other threads do with it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _word.as_pointer())
        builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _exchange(_: Any, address: Any, old: Any, new: Any) -> Any:
    """Make the word there `new` if it is `old`. Returns whether it was: one thread succeeds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _word.as_pointer())
        result = builder.cmpxchg(pointer, *arguments[1:], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


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
    """Call the job whose address is `code`, or `_give_out`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_word, [_word] * 4)
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(*[types.int64] * 5), generate


@intrinsic(prefer_literal=True)
def _invoke(_: Any, name: Any, version: Any, at: Any, first: Any, last: Any, part: Any) -> Any:
    """Call the kernel of that name with the arguments that lie at `at`."""
    chosen = _jobs[name.literal_value]
    listed = _tuple_type(chosen.kinds)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(listed)
        kept = builder.load(builder.inttoptr(values[2], kind.as_pointer()))
        flags = Flags()
        flags.nrt, flags.error_model, flags.no_compile = True, "numpy", True
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        inner = types.void(*listed, *[types.int64] * 3)
        # Into the library of its caller: one of its own would be optimised and made machine code
        # of too, and never run.
        library = context.active_code_library
        within = context.typing_context, context, library
        result = inner.return_type
        compiled = compile_internal(*within, chosen.kernel, inner.args, result, flags, {})
        library.get_function(compiled.fndesc.llvm_func_name).linkage = "linkonce_odr"
        arguments = [*cgutils.unpack_tuple(builder, kept), *values[3:]]
        context.call_internal(builder, compiled.fndesc, inner, arguments)
        return context.get_dummy_value()

    return types.void(name, version, at, first, last, part), generate


# ------------------------------------------------------------------------------------------- jobs

# Decorator of functions for kernels to call. Python itself cannot, which saves compiling how.
inner = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)

_CODE = "int64(int64, int64, int64, int64)"  # what has an address: jobs, and `_give_out`

uncached = False  # whether it turned out that what is compiled cannot be kept for the next run


def _tell_uncached(reason: object) -> None:
    global uncached
    uncached = True
    warnings.warn(
        f"compiled CPU kernels cannot be kept ({reason}), so every run compiles them again: "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        stacklevel=3,
    )


def _kept(decorate: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
    """The decorator `decorate(*args, **options)`, its result kept for the next run if possible."""

    def decorator(function: Callable[..., Any]) -> Any:
        if not uncached:
            try:
                return decorate(*args, cache=True, **options)(function)
            except RuntimeError:  # Numba found no folder that it may write to
                _tell_uncached("no folder for them can be written")
            except OSError as error:  # compiled, but not saved: a full disk, say
                _tell_uncached(error)
        return decorate(*args, **options)(function)

    return decorator


class Job:
    """A kernel that threads can share, compiled when it is first needed.

    kinds: of its arguments, see `job`.   After `compile`, address: of its machine code, which takes
    the address of its arguments, first, last and part; start: `_start`, for arguments like these.
    """

    start: Any

    def __init__(self, kernel: Callable[..., None], kinds: str) -> None:
        self.kernel, self.name, self.kinds = kernel, kernel.__name__, kinds
        self.address = 0

    def compile(self) -> None:
        """Compile it, or load it as an earlier run left it."""
        with _lock:
            if self.address:
                return
            name, version = self.name, _version()

            def code(at, first, last, part):
                _invoke(name, version, at, first, last, part)
                return 0

            code.__qualname__ = name  # and with it the file that Numba keeps it in
            types_of_start = (*[types.int64] * 2, _tuple_type(self.kinds), *[types.int64] * 2)
            start = FunctionType(_start.__code__, globals(), "start")
            start.__qualname__ = f"start.{name}"
            options = {"nogil": True, "no_cfunc_wrapper": True}
            self.start = _kept(numba.njit, [types.int64(*types_of_start)], **options)(start)
            self.code = _kept(numba.cfunc, _CODE)(code)
            self.address = self.code.address


_jobs: dict[str, Job] = {}
_lock = threading.Lock()


def job(kinds: str) -> Callable[[Callable[..., None]], Any]:
    """Decorator: this is a job whose arguments before first, last and part are of these types.

    v, m: float32 (n,), (m,n)   d, t: float64, int64 (m,n)   i, f: int64, float64   g: 13 of int64
    """

    def decorate(function: Callable[..., None]) -> Any:
        return _jobs.setdefault(function.__name__, Job(function, kinds))

    return decorate


def _text(value: Any) -> str:
    """What a constant is, or what a function does: its line numbers and notes are left out."""
    value = getattr(value, "kernel", value)  # of a job
    value = getattr(value, "py_func", getattr(value, "_defn", value))  # of Numba's
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, CodeType):
        constants = [_text(c) if isinstance(c, CodeType) else repr(c) for c in value.co_consts]
        return f"{value.co_code!r}{value.co_names}{constants}"
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{_text(value.__code__)}{_text(value.__defaults__)}{_text(enclosed)}"
    return repr(value) if isinstance(value, bool | int | float | str | None) else ""


@cache
def _version() -> str:
    """A hash of all that kernels are made of, for Numba to keep them by: what is loaded, which may
    be older than the files. Numba adds its own version, and the processor's name and
    features."""
    own = {each.kernel.__module__ for each in _jobs.values()}
    used = (
        getattr(v, "__module__", None) or "" for m in own for v in vars(sys.modules[m]).values()
    )
    own |= {name for name in used if name.startswith(f"{__package__}.")}
    texts = []
    for module in map(sys.modules.__getitem__, own):
        for name, value in vars(module).items():
            if isinstance(value, type):
                texts.append(_text(list(vars(value).values())))
            elif name.isupper() or callable(value):
                texts.append(name + _text(value))
    return hashlib.sha256("".join(sorted(texts)).encode()).hexdigest()[:16]


def every() -> list[Job]:
    """All jobs of the modules that are imported."""
    return list(_jobs.values())


# ---------------------------------------------------------------------------------------- sharing
# A pool is an array of words in rows, which are lines of cache. The task word says it all: the
# number of the task, of its parts, and of those that are taken. Whoever raises the last takes a
# part, the one who gave out the task too, so that nobody waits for a worker who sleeps, or whose
# core does something else. A taken word of an older task cannot be exchanged: its number differs.

ROW = 8  # words
# Where there are: the task word; parts done; code, count, number of workers, the address of
# `_give_out`; whether each worker sleeps.
TASK, DONE, CODE, WORKERS = 0, 8, 16, 24
_ARGUMENTS = 512  # words


def new_pool(workers: int) -> tuple[Any, Any]:
    """(the address of the words that a pool shares, for each worker the word whether he sleeps)"""
    words = np.zeros(WORKERS + (workers + 1) * ROW + _ARGUMENTS, np.int64)
    first = _ARGUMENTS + -(words.ctypes.data // 8) % ROW
    words[first + CODE + 2 : first + CODE + 4] = workers, _give_out.address
    asleep = words[first + WORKERS : first + WORKERS + workers * ROW : ROW]
    return words.ctypes.data + 8 * first, asleep


@inner
def _arguments(pool):
    """They lie before the first row."""
    return pool - 8 * _ARGUMENTS


@inner
def _work(pool):
    """Do parts of the task while there are any. Returns whether there were."""
    any_done = False
    while True:
        task = _load(pool + 8 * TASK)
        parts, part = task >> 16 & 0xFFFF, task & 0xFFFF
        if part >= parts:
            return any_done
        code, count = _load(pool + 8 * CODE), _load(pool + 8 * CODE + 8)
        if _exchange(pool + 8 * TASK, task, task + 1):
            first, last = part * count // parts, (part + 1) * count // parts
            _call(code, _arguments(pool), first, last, part)
            _add(pool + 8 * DONE, 1)
            any_done = True


@_kept(numba.njit, ["boolean(int64, int64)"], nogil=True)
def finished(pool, turns):
    """Help with the task. Returns whether all its parts are done, now or within so many looks."""
    _work(pool)
    parts = _load(pool + 8 * TASK) >> 16 & 0xFFFF
    for _ in range(turns):
        if _load(pool + 8 * DONE) == parts:
            return True
    return False


def _start(pool, code, arguments, count, parts):
    """Give out a job in `parts` shards of 0 .. count. Returns whether it is `finished`; false at
    once if there is a worker to be woken first.

    pool: its address.   code: that of the job.   Compiled for each kind of arguments, so that it is
    short, and the rest is called.
    """
    _leave(arguments, _arguments(pool))
    return _call(_load(pool + 8 * CODE + 24), pool, code, count, parts)


@_kept(numba.cfunc, _CODE)
def _give_out(pool, code, count, parts):
    """Give out the job whose arguments lie there."""
    _store(pool + 8 * CODE, code)
    _store(pool + 8 * CODE + 8, count)
    _store(pool + 8 * DONE, 0)
    number = (_load(pool + 8 * TASK) >> 32) + 1 & 0x7FFFFFFF
    _store(pool + 8 * TASK, number << 32 | parts << 16)
    for worker in range(min(parts - 1, _load(pool + 8 * CODE + 16))):
        if _load(pool + 8 * (WORKERS + worker * ROW)):  # he may have begun to sleep just now
            return 0
    return int(finished(pool, 1 << 16))


@_kept(numba.njit, ["void(int64, int64, int64)"], nogil=True)
def serve(pool, asleep, turns):
    """Do parts of tasks, until for so many looks there was none.   asleep: address of the word."""
    _store(asleep, 0)
    looks = 0
    while looks <= turns:
        looks += 1
        if _work(pool):
            looks = 0
        elif looks == turns:
            _store(asleep, 1)  # before the last look: who gives out a task after it will see that
