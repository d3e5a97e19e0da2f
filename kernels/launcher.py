"""launch(): the one seam between Python and the .cu files, and who executes.

The arrays say who: CuPy arrays the GPU, through cupy.RawModule; NumPy arrays `sim`, the SIMT
interpreter of the PTX that NVIDIA's compiler makes of the same files.

Launches on a GPU are asynchronous, and nothing here waits for them. What changes from one training
step to the next is in arrays or goes through `numbers`, so that a Graph of a step's launches can be
replayed for the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from minigan.array import Array, xp_of
from minigan.kernels.signatures import (
    FOLDER,
    Signature,
    checked,
    common_device,
    signatures,
    source_of,
    three_sizes,
)

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """A kernel of kernels/*.cu, specialised by -D definitions."""

    name: str
    defines: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Launch:
    """A line of the launch log."""

    kernel: str
    grid: Dims
    block: Dims
    defines: tuple[tuple[str, Any], ...] = ()


_logs: list[list[Launch]] = []
_checks = True
_plan: dict[Kernel, Array] | None = None  # kernels to compile, each with an array of its device
_graph: Graph | None = None  # that launches are captured for, or that is being refreshed


def set_checks(enabled: bool) -> bool:
    """Whether sim looks for races, stray accesses and the like from now on, which takes three times
    as long. Returns whether it did."""
    global _checks
    previous, _checks = _checks, enabled
    return previous


@contextmanager
def launch_log() -> Iterator[list[Launch]]:
    """Context manager: the list of all launches inside it, in order."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


def launch(kernel: Kernel, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
    """Run a kernel over a grid of blocks (up to three dimensions each), asynchronously on a GPU.

    args: one for each parameter of the kernel. Scalars are cast to the declared type. Arrays must
    have the declared dtype, be C-contiguous, and lie all on one device, where the kernel runs; None
    is a null pointer. A grid of no blocks does nothing.

    Raises: TypeError, ValueError that name kernel and argument.
    """
    if kernel.name not in signatures():
        raise ValueError(f"launch: no kernel {kernel.name!r} in kernels/*.cu")
    signature = signatures()[kernel.name]
    if len(args) != len(signature.parameters):
        names = ", ".join(p.name for p in signature.parameters)
        raise TypeError(f"{kernel.name}: {len(args)} arguments for the parameters ({names})")
    pairs = list(zip(signature.parameters, args, strict=True))
    args = [checked(kernel.name, parameter, arg) for parameter, arg in pairs]
    arrays = {p.name: a for p, a in pairs if p.is_array and a is not None}
    device = common_device(kernel.name, arrays)
    if math.prod(grid) == 0 or (_graph is not None and _graph.refreshes):
        return
    grid3, block3 = three_sizes(kernel.name, "grid", grid), three_sizes(kernel.name, "block", block)
    for log in _logs:
        log.append(Launch(kernel.name, grid3, block3, kernel.defines))
    if _plan is not None:
        _plan[kernel] = next(iter(arrays.values()))
        return
    execute = _execute_on_sim if device is None else _execute_on_gpu
    execute(signature, kernel, grid3, block3, args)


# ---- Executors ----------------------------------------------------------------------------------


def _execute_on_sim(
    signature: Signature, kernel: Kernel, grid: Dims, block: Dims, args: Sequence[Any]
) -> None:
    _sim_module(signature.file, kernel).launch(kernel.name, grid, block, *args, checks=_checks)


def _sim_module(file: str, kernel: Kernel) -> Any:
    from minigan.kernels import sim

    return sim.load(source_of(file), defines=dict(kernel.defines), name=str(FOLDER / file))


def _execute_on_gpu(
    signature: Signature, kernel: Kernel, grid: Dims, block: Dims, args: Sequence[Any]
) -> None:
    null = np.uint64(0)
    like = next(arg for arg in args if xp_of(arg) is not np)
    with like.device:
        function = gpu_function(xp_of(like), signature.file, kernel)
        function(grid, block, tuple(null if arg is None else arg for arg in args))


@cache
def gpu_function(xp: Any, file: str, kernel: Kernel) -> Any:
    """The compiled kernel; CuPy loads it on each device where it is called, and caches it on disk.

    xp: CuPy, which adds -arch and -ftz=true itself.
    """
    options = ("--std=c++17", *(f"-D{key}={value}" for key, value in kernel.defines))
    try:
        return xp.RawModule(code=source_of(file), options=options).get_function(kernel.name)
    except OSError as error:
        raise OSError(
            f"{kernel.name}: CuPy cannot write its kernel cache ({error}): set the environment "
            "variable CUPY_CACHE_DIR to a folder that it may write"
        ) from error


# ---- Compiling ahead ----------------------------------------------------------------------------


@contextmanager
def planning() -> Iterator[dict[Kernel, Array]]:
    """Context manager: launches inside it are logged, but launch nothing; yields their kernels."""
    global _plan
    previous, _plan = _plan, {}
    try:
        yield _plan
    finally:
        _plan = previous


def is_planning() -> bool:
    return _plan is not None


def compile_all(
    plan: dict[Kernel, Array], progress: Callable[[int, int], None] | None = None
) -> None:
    """Compile what `planning` yielded.   progress: called with (those that are ready, all)."""
    for i, (kernel, like) in enumerate(plan.items()):
        file = signatures()[kernel.name].file
        if xp_of(like) is np:
            _sim_module(file, kernel).program(kernel.name)
        else:
            with like.device:
                gpu_function(xp_of(like), file, kernel)
        if progress is not None:
            progress(i + 1, len(plan))


# ---- CUDA graphs --------------------------------------------------------------------------------


def numbers(like: Array, values: np.ndarray) -> Array:
    """`values` in the memory of like's device, for a kernel to read.

    What a kernel reads so, and not as an argument, changes when a Graph is replayed.
    """
    return xp_of(like).asarray(values) if _graph is None else _graph.slot(values)


class Graph:
    """The launches of some work on a GPU, captured once and replayed with one call.

    Arrays that the work allocates come from a memory pool of the graph's own, which nobody else
    takes memory from: their addresses are in the graph. After the capture, `stream` is the current
    one of this thread, so that what follows waits for the replays and they for it.

    beside: a graph whose stream this one shares.
    """

    def __init__(self, xp: Any, beside: Graph | None = None) -> None:
        self.xp = xp
        self.stream: Any = beside.stream if beside else xp.cuda.Stream(non_blocking=True)
        self.refreshes = False
        self._pool = xp.cuda.MemoryPool()
        self._slots: list[tuple[Array, np.ndarray]] = []  # of `numbers`, in the order of the calls
        self._next = 0
        self._captured: Any = None

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Context manager: launches inside it are recorded and not run; `replay` does that.

        What they need must be compiled. Waiting for the GPU in here is an error of CUDA.
        """
        global _graph
        xp = self.xp
        xp.cuda.get_current_stream().synchronize()  # what the work reads is there
        with self.stream, xp.cuda.using_allocator(self._pool.malloc):
            self.stream.begin_capture(xp.cuda.runtime.streamCaptureModeRelaxed)
            _graph = self
            try:
                yield
            except BaseException:
                with suppress(Exception):
                    self.stream.end_capture()
                raise
            finally:
                _graph = None
            self._captured = self.stream.end_capture()
            for slot, values in self._slots:
                slot.set(values)
        self.stream.use()

    def slot(self, values: np.ndarray) -> Array:
        """See `numbers`."""
        if not self.refreshes:
            self._slots.append((self.xp.empty(values.shape, values.dtype), values))
            return self._slots[-1][0]
        slot, _ = self._slots[self._next]
        self._next += 1
        slot.set(values)
        return slot

    @contextmanager
    def refresh(self) -> Iterator[None]:
        """Context manager: the work is done again, but only `numbers` has an effect.

        Done between replays, it gives the next one its numbers.
        """
        global _graph
        _graph, self.refreshes, self._next = self, True, 0
        try:
            yield
        finally:
            _graph, self.refreshes = None, False

    def replay(self) -> None:
        """Run the work, asynchronously."""
        self._captured.launch(self.stream)
