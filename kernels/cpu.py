"""The kernel contract on a CPU's cores: compiled loops, on shards of the batch.

This file chooses: which loops compute a convolution, in how many shards, and what they are handed.

    conv2d          winograd.py for wide layers of 4 × 4 taps and stride 2; else the product of
                    patches and filters, convolution.py
    conv2d_dgrad    the same; phase by phase, or by col2im where there are few channels
    conv2d_wgrad    the same; each shard's sum apart, added in order
    matmul          gemm.py

Results have the contract's shapes, and channels last in memory: an image (N,C,H,W) is a view of an
array (N,H,W,C), in which a pixel's channels are neighbours and a matrix of pixels needs no copy.
Arrays in any other order are taken too, and copied first.

This is for float32. Other dtypes, grouped convolutions, and all where Numba is missing, run as in
plain.py.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from minigan.kernels import plain, threads
from minigan.kernels.reference import Pads, Pair, conv_out_size

Array = Any

# A shard must be worth the 2 µs that giving it out takes: at least this many floats, of which
# a loop moves 2 to 8 a nanosecond. _PRODUCTS multiplications are done while a float is moved.
_LEAST = 1 << 14
_PRODUCTS = 16

_WINOGRAD_TILES = 128  # in a batch, that transforming the filters be worth it
_PIECE_ROWS = 256  # of patches at a time: what they and the filters take fits the second cache


# ------------------------------------------------------------------------------- loops and layout

_loops: Any = None  # the module of compiled loops, once it is needed; False if there is none
_gemm: Any = None  # those of products
_conv: Any = None  # convolutions
_winograd: Any = None  # and those with fewer multiplications


def load() -> bool:
    """Import the loops. Returns whether they work here; if not, says so once."""
    global _loops, _gemm, _conv, _winograd
    if _loops is None:
        try:
            from minigan.kernels import compiled, convolution, gemm, winograd

            compiled.column_sums.compile()  # a small one, to see
            _keep_pages()
            _loops, _gemm, _conv, _winograd = compiled, gemm, convolution, winograd
        except Exception as error:
            _loops = False
            warnings.warn(
                f"CPU kernels run on plain NumPy, several times slower, since Numba does not work "
                f"here ({type(error).__name__}: {error}): pip install numba",
                stacklevel=2,
            )
    return _loops is not False


def warm_up(
    needed: Iterable[Any] | None = None, progress: Callable[[int, int], None] | None = None
) -> None:
    """Compile jobs, or load what an earlier run left of them; else that happens at their first use.

    needed: those that `threads.planning` has listed; by default all.
    progress: called with (jobs that are ready, jobs in all) after each.
    """
    if not load():
        return
    from minigan.kernels import jobs

    listed = jobs.every() if needed is None else list(dict.fromkeys(needed))
    helper, collecting = None, gc.isenabled()
    gc.disable()  # a compiler makes many objects, and no cycles worth looking for meanwhile
    try:
        for i, job in enumerate(listed):
            started = time.perf_counter()
            job.compile()
            if progress is not None:
                progress(i + 1, len(listed))
            new = time.perf_counter() - started > _LOADING and not jobs.uncached
            if new and helper is None and threads.count() > 1 and i + 3 < len(listed):
                helper = _from_the_end([each.name for each in listed])
    finally:
        if collecting:
            gc.enable()
        if helper is not None:
            helper.kill()  # what it was at is compiled; files are moved into place when whole
            helper.wait()


_LOADING = 0.15  # seconds that loading a job never takes, and compiling one mostly does
_COMPILE = """
import os, sys
sys.path[:] = sys.argv[1].split("|")
from minigan.kernels import cpu, jobs
cpu.load()
byname = {job.name: job for job in jobs.every()}
for name in reversed(sys.argv[3:]):
    if os.getppid() == int(sys.argv[2]):  # else it was killed, and could not stop this one
        byname[name].compile()
"""


def _from_the_end(names: list[str]) -> subprocess.Popen[bytes] | None:
    """Another process, that compiles the same jobs in reverse order until it is stopped. What it
    leaves for the next run, this one finds: Numba compiles one function at a time in a process.

    None where this Python cannot be started again; if that one fails, this one compiles all."""
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    path = "|".join(str(folder) for folder in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _COMPILE, path, str(os.getpid()), *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _keep_pages() -> None:
    """Have the C library keep the memory of freed arrays instead of giving it back to the system.

    A step frees what the next one allocates; fetching new pages took a quarter of its time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its greatest
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def _fast(*arrays: Array) -> bool:
    """Whether the compiled loops can work on these arrays: float32, some elements."""
    return all(a.dtype == np.float32 and a.size for a in arrays) and (
        _loops not in (None, False) or load()
    )


def _all_float32(*arrays: Array | None) -> bool:
    return all(a is None or a.dtype == np.float32 for a in arrays)


def _shards(parts: int, work: int) -> int:
    """Among how many threads to share `parts` images or rows that are `work` floats in all."""
    return max(1, min(threads.count(), parts, work // _LEAST))


def _share(job: Any, arguments: tuple[Any, ...], parts: int, work: int) -> int:
    """Do a job on all of `parts`, which are `work` floats. Returns among how many it was shared."""
    shards = _shards(parts, work)
    threads.run(job, arguments, parts, shards)
    return shards


def _transposed(a: Array, outer: int, m: int, n: int) -> Array:
    """a (outer,m,n) -> (outer,n,m), all flat"""
    b = np.empty(outer * m * n, np.float32)
    _share(_gemm.transpose, (a.reshape(-1), b, m, n), outer, 2 * a.size)
    return b


_own = threading.local()


def _space(shards: int, floats: int, addresses: int) -> tuple[Array, Array]:
    """float32 (shards,≥floats) and int64 (shards,≥addresses) of anything, this thread's until it
    asks again: new pages would cost time. The floats are a vector more."""
    flat, table = getattr(_own, "space", (np.empty(0, np.float32), np.empty(0, np.int64)))
    floats += _gemm.LANES
    if flat.size < shards * floats or table.size < shards * addresses:
        flat = np.empty(max(flat.size, shards * floats), np.float32)
        table = np.empty(max(table.size, shards * addresses), np.int64)
        _own.space = flat, table
    return (
        flat[: shards * floats].reshape(shards, -1),
        table[: shards * addresses].reshape(shards, -1),
    )


def _sums(channels: int) -> Array:
    """float64 (threads, ≥channels), a row for each shard to sum in. Gaps keep the rows from sharing
    a line of cache, which would travel between the cores with every addition."""
    return np.empty((threads.count(), channels + 32))


def _dense(a: Array) -> Array:
    """a with its elements in order, and not read-only, which the loops' types are not."""
    a = np.ascontiguousarray(a)
    return a if a.flags.writeable else a.copy()


def _channels_last(x: Array) -> Array:
    """x (N,C,...) -> (N,...,C) with its elements in order; a view if they are."""
    last = x.transpose(0, *range(2, x.ndim), 1)
    if last.flags.c_contiguous or not x.flags.c_contiguous:
        return _dense(last)
    return _transposed(x, len(x), x.shape[1], prod(x.shape[2:])).reshape(last.shape)


def _rows(x: Array) -> Array:
    """x (N,C,...) -> (M,C)"""
    return _channels_last(x).reshape(-1, x.shape[1])


def _images(rows: Array, shape: tuple[int, ...]) -> Array:
    """rows (M,C) -> (N,C,...) of that shape"""
    last = rows.reshape(shape[0], *shape[2:], shape[1])
    return last.transpose(0, last.ndim - 1, *range(1, last.ndim - 1))


# ------------------------------------------------------------------------------------ convolution


@dataclass(frozen=True)
class _Geometry:
    """The sizes of a convolution, and how the work on it is cut."""

    n: int
    size: Pair
    channels: int
    taps: Pair
    stride: Pair
    pad: Pads
    dilation: Pair
    filters: int

    @property
    def out(self) -> Pair:
        return conv_out_size(self.size, self.taps, self.stride, self.pad, self.dilation)

    @property
    def depth(self) -> int:
        """R·S·C: the length of a patch."""
        return self.taps[0] * self.taps[1] * self.channels

    @property
    def pixels(self) -> int:
        """P·Q: the patches that an image has."""
        return prod(self.out)

    @property
    def direct(self) -> bool:
        """Whether patches do not overlap, and are x in its order: of one pixel, or the image."""
        if any(map(any, self.pad)) or self.dilation != (1, 1):
            return False
        return self.taps == self.size or (self.taps == (1, 1) and self.stride == (1, 1))

    @property
    def work(self) -> int:
        return self.n * self.pixels * self.depth * (1 + self.filters // _PRODUCTS)

    def numbers(self) -> tuple[int, ...]:
        """As the loops take them."""
        (top, _), (left, _) = self.pad
        return (*self.size, self.channels, *self.out, *self.taps, *self.stride, top, left,
                *self.dilation)  # fmt: skip

    def piece(self, pixels: int) -> int:
        """How many images of so many pixels to take at a time."""
        return max(1, min(self.n, -(-_PIECE_ROWS // max(1, pixels))))

    def how(self, whole_vectors: bool = False) -> int:
        """Where patches are read.   whole_vectors: whether a run's last vector must be there."""
        run = self.taps[1] * self.channels
        if self.dilation[1] != 1 or run < _gemm.LANES:
            return int(_conv.LAID_OUT)
        if any(map(any, self.pad)) or (whole_vectors and run % _gemm.LANES):
            return int(_conv.PADDED)
        return int(_conv.IN_PLACE)

    def area(self, how: int) -> int:
        """Floats of space that the patches of an image take."""
        if how == _conv.IN_PLACE:
            return 0
        sizes = zip(
            self.size, self.pad, self.out, self.stride, self.dilation, self.taps, strict=True
        )
        padded = self.channels * prod(
            max(h + pad[0], (p - 1) * stride + dilation * (taps - 1) + 1)
            for h, pad, p, stride, dilation, taps in sizes
        )
        return padded + (self.pixels * self.depth if how == _conv.LAID_OUT else 0)

    def framed(self) -> int:
        """Floats of an image of g with what conv2d_dgrad's phases read around it."""
        sizes = zip(self.size, self.pad, self.out, self.stride, self.taps, strict=True)
        return self.filters * prod(
            -(-taps // stride) - 1 + max(p, (h - 1 + pad[0]) // stride + 1)
            for h, pad, p, stride, taps in sizes
        )

    def phases(self) -> bool:
        """Whether conv2d_dgrad is faster phase by phase than by col2im, by the number of products,
        and eight for each number that col2im adds."""
        if self.dilation != (1, 1):
            return False
        taps = prod(-(-t // s) for t, s in zip(self.taps, self.stride, strict=True))
        by_phases = prod(self.size) * taps * self.filters * _whole(self.channels)
        by_columns = self.pixels * (self.filters * _whole(self.depth) + 8 * self.depth)
        return by_phases < by_columns

    def winograd(self) -> bool:
        """Whether Winograd's filtering applies (whole vectors of channels, two outputs of a parity
        and axis at least) and is faster: see winograd.py."""
        shape = self.taps, self.stride, self.dilation
        whole = self.channels % _gemm.LANES == self.filters % _gemm.LANES == 0
        large = min(self.size) >= 4 and min(self.out) >= 2
        enough = self.n * prod(-(-p // 3) for p in self.out) >= _WINOGRAD_TILES
        fit = whole and large and enough and _winograd.EXACT_ENOUGH
        return shape == ((4, 4), (2, 2), (1, 1)) and fit


def _whole(columns: int) -> int:
    """Columns in whole vectors."""
    return int(-(-columns // _gemm.LANES) * _gemm.LANES)


def _packed(w: Array, n: int, n_step: int, outer: int, taps: int) -> Array:
    """w, flat, as the panels of a matrix of n columns: see gemm.pack."""
    panels = np.empty(outer * taps * _whole(n), np.float32)
    arguments = w, panels, n, n_step, outer, taps
    _share(_gemm.pack, arguments, _whole(n) // _gemm.LANES, 2 * panels.size)
    return panels


_IN_LOOPS = ("linear", "relu", "leaky_relu")  # NumPy's vectorised tanh and exp do the others


def _ending(k: int, bias: Array | None, act: str, slope: float) -> tuple[Array, int, int, float]:
    """What the loops take of bias and activation: (bias, whether there is any, act, slope)."""
    code = _loops.ACTS[act] if act in _IN_LOOPS else _loops.LINEAR
    b = np.zeros(k, np.float32) if bias is None else _dense(bias)
    return b, int(bias is not None or code != _loops.LINEAR), code, slope


def _filters(w: Array) -> Array:
    """w (K,C,R,S) -> (K, R·S·C)"""
    k, c, r, s = w.shape
    if c == 1 or r * s == 1:
        return _dense(w).reshape(k, -1)
    return _transposed(_dense(w), k, c, r * s).reshape(k, -1)


def _columns(b: Array) -> tuple[Array, int, int]:
    """b (depth,n) as the loops read it: flat, and two numbers, see gemm.product."""
    depth, n = b.shape
    if b.T.flags.c_contiguous and not b.flags.c_contiguous:
        return _packed(_dense(b.T).reshape(-1), n, depth, 1, depth), depth, int(_gemm.LANES)
    if n % _gemm.LANES:
        whole = np.empty((depth, _whole(n)), np.float32)
        whole[:, :n] = b
        whole[:, n:] = 0
        b = whole
    return _dense(b).reshape(-1), 1, b.shape[1]


def conv2d(
    x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Array | None = None, act: str = "linear", slope: float = 0.0,
) -> Array:  # fmt: skip
    if groups != 1 or not _fast(x, w) or not _all_float32(bias):
        y = plain.conv2d(x, w, stride, pad, dilation, groups)
        return bias_act(y, bias, act, slope)
    n, c, *size = x.shape
    k, _, r, s = w.shape
    geometry = _Geometry(n, (size[0], size[1]), c, (r, s), stride, pad, dilation, k)
    if geometry.winograd():
        ending = _ending(k, bias, act, slope)
        y = _winograd.convolve(x, w, geometry.out, pad, False, geometry.work, ending)
        _finish(y, act)
        return _images(y, (n, k, *geometry.out))
    pixels, numbers, how = geometry.pixels, geometry.numbers(), geometry.how()
    images = _channels_last(x).reshape(-1)
    flat = _dense(w).reshape(-1)
    outer, taps = (c, r * s) if r * s > 1 else (1, c)
    panels = _packed(flat, k, c * r * s, outer, taps)
    y = np.empty((n * pixels, k), np.float32)
    piece = geometry.piece(pixels)
    space = _space(
        _shards(n, geometry.work), piece * geometry.area(how), 2 * (piece * pixels + _gemm.ROWS)
    )
    arguments = images, panels, y, *_ending(k, bias, act, slope), how, piece, *space, numbers
    _share(_conv.conv2d, arguments, n, geometry.work)
    _finish(y, act)
    return _images(y, (n, k, *geometry.out))


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Array | None = None, act: str = "linear", slope: float = 0.0,
) -> Array:  # fmt: skip
    if groups != 1 or not _fast(g, w) or not _all_float32(bias):
        gx = plain.conv2d_dgrad(g, w, size, stride, pad, dilation, groups)
        return bias_act(gx, bias, act, slope)
    n, k = g.shape[:2]
    _, c, r, s = w.shape
    geometry = _Geometry(n, size, c, (r, s), stride, pad, dilation, k)
    if geometry.winograd():
        ending = _ending(c, bias, act, slope)
        gx = _winograd.convolve(g, w, size, pad, True, geometry.work, ending)
        _finish(gx, act)
        return _images(gx, (n, c, *size))
    numbers, image = geometry.numbers(), prod(size)
    gx = np.empty((n * image, c), np.float32)
    ending = _ending(c, bias, act, slope)
    if geometry.phases():
        panels = np.empty(r * s * k * _whole(c), np.float32)
        filters = _dense(w).reshape(-1), panels, numbers, k
        _share(_conv.pack_phases, filters, _whole(c) // _gemm.LANES, 2 * panels.size)
        piece = geometry.piece(image)
        rows = 2 * (piece * image + _gemm.ROWS)
        space = _space(_shards(n, geometry.work), piece * geometry.framed(), rows)
        arguments = _rows(g).reshape(-1), panels, gx, *ending, piece, *space, numbers, k
        _share(_conv.conv2d_dgrad, arguments, n, geometry.work)
    elif geometry.direct:
        wide = None if bias is None else np.tile(bias, r * s)
        return _images(
            matmul(_rows(g), _filters(w), wide, act, slope).reshape(-1, c), (n, c, *size)
        )
    else:
        cols = matmul(_rows(g), _filters(w)).reshape(-1)
        _share(_conv.col2im, (cols, gx, *ending, numbers), n, cols.size + gx.size)
    _finish(gx, act)
    return _images(gx, (n, c, *size))


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    if groups != 1 or not _fast(x, g):
        return plain.conv2d_wgrad(x, g, taps, stride, pad, dilation, groups)
    n, c, *size = x.shape
    k = g.shape[1]
    geometry = _Geometry(n, (size[0], size[1]), c, taps, stride, pad, dilation, k)
    if geometry.winograd():
        return _winograd.wgrad(x, g, pad, geometry.work)
    pixels, numbers, how = geometry.pixels, geometry.numbers(), geometry.how(whole_vectors=True)
    images, flat = _channels_last(x).reshape(-1), _rows(g).reshape(-1)
    runs = 1 if how == _conv.LAID_OUT else taps[0]
    length = geometry.depth // runs
    shards, piece = _shards(n, geometry.work), geometry.piece(pixels)
    sums = np.empty((shards, k * runs * _whole(length)), np.float32)
    space = _space(shards, piece * geometry.area(how), piece * pixels)
    arguments: tuple[Any, ...] = images, flat, sums, how, piece, *space, numbers, k
    _share(_conv.conv2d_wgrad, arguments, n, geometry.work)
    gw = np.empty((k, c, *taps), np.float32)
    arguments = sums.reshape(-1), gw.reshape(-1), shards, k, runs, length, c
    _share(_conv.add_sums, arguments, k, 2 * sums.size)
    return gw


def matmul(
    x: Array, b: Array, bias: Array | None = None, act: str = "linear", slope: float = 0.0
) -> Array:
    """act(x @ b + bias), the rows or the columns of the result shared among the threads."""
    if x.ndim != 2 or b.ndim != 2 or not _fast(x, b) or not _all_float32(bias):
        with threads.one_blas_thread():
            return bias_act(x @ b, bias, act, slope)
    (m, depth), n = x.shape, b.shape[1]
    if min(m, depth, n) == 1 and m * depth * n < _LEAST:  # no product that a tile is made for
        y = x * b if depth == 1 else x @ b
        return y if bias is None and act == "linear" else bias_act(y, bias, act, slope)
    y = np.empty((m, n), np.float32)
    work = m * n * depth // _PRODUCTS
    shards = _shards(m, work)
    if x.T.flags.c_contiguous and not x.flags.c_contiguous and n % _gemm.LANES == 0:
        table = _space(shards, 0, depth)[1]
        arguments = _dense(x.T).reshape(-1), m, _dense(b).reshape(-1), y, table
        _share(_gemm.matmul_outer, arguments, m, work)
        return y if bias is None and act == "linear" else bias_act(y, bias, act, slope)
    left, ending = _dense(x).reshape(-1), _ending(n, bias, act, slope)
    turned = b.T.flags.c_contiguous and not b.flags.c_contiguous
    if m <= n and (turned or (n % _gemm.LANES == 0 and b.flags.c_contiguous)):
        panels = _whole(n) // _gemm.LANES
        space = _space(_shards(panels, work), depth * _gemm.LANES, m + _gemm.ROWS)
        right = _dense(b.T if turned else b).reshape(-1), int(turned)
        _share(_gemm.matmul_columns, (left, depth, *right, y, *ending, *space), panels, work)
    else:
        table = _space(shards, 0, 2 * (-(-m // shards) + _gemm.ROWS))[1]
        _share(_gemm.matmul, (left, depth, *_columns(b), y, *ending, table), m, work)
    _finish(y, act)
    return y


# --------------------------------------------------------------------------- bias and activation


def bias_act(x: Array, bias: Array, act: str, slope: float) -> Array:
    if not _fast(x) or not _all_float32(bias):
        return plain.bias_act(x, bias, act, slope)
    rows = _rows(x)
    bias = np.zeros(x.shape[1], np.float32) if bias is None else _dense(bias)
    y = np.empty_like(rows)
    arguments = rows, bias, y, _loops.ACTS[act], slope
    _share(_loops.bias_act, arguments, len(rows), x.size)
    _finish(y, act)
    return _images(y, x.shape)


def _finish(y: Array, act: str) -> None:
    """Apply, in place, the activations that the loops leave to NumPy."""
    if act == "tanh":
        np.tanh(y, out=y)
    elif act == "sigmoid":
        np.negative(y, out=y)
        with np.errstate(over="ignore"):  # 1 / (1 + ∞) is 0, as it should be
            np.exp(y, out=y)
        y += np.float32(1)
        np.reciprocal(y, out=y)


def bias_act_backward(g: Array, y: Array, act: str, slope: float) -> tuple[Array, Array]:
    if not _fast(g, y):
        return plain.bias_act_backward(g, y, act, slope)
    g_rows = _rows(g)
    sums = _sums(g.shape[1])
    gx, job = g, _loops.column_sums
    arguments: tuple[Any, ...] = g_rows, sums
    if act != "linear":
        gx_rows = np.empty_like(g_rows)
        gx, job = _images(gx_rows, g.shape), _loops.bias_act_backward
        arguments = g_rows, _rows(y), gx_rows, sums, _loops.ACTS[act], slope
    shards = _share(job, arguments, len(g_rows), g.size)
    return gx, sums[:shards, : g.shape[1]].sum(axis=0).astype(np.float32)


# ------------------------------------------------------------------------------------- batch norm


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, act: str, slope: float
) -> tuple[Array, Array, Array]:
    if not _fast(x) or not _all_float32(weight, bias):
        return plain.batch_norm(x, weight, bias, eps, act, slope)
    rows = _rows(x)
    m, c = rows.shape
    sums = _sums(c), _sums(c)
    shards = _share(_loops.moments, (rows, *sums), m, x.size)
    mean, square = (a[:shards, :c].sum(axis=0) / m for a in sums)
    rstd64 = 1 / np.sqrt(np.maximum(square - mean * mean, 0) + eps)
    mean, rstd = mean.astype(np.float32), rstd64.astype(np.float32)
    scale = rstd if weight is None else rstd * weight
    bias = np.zeros(c, np.float32) if bias is None else _dense(bias)
    y = np.empty_like(rows)
    arguments = rows, mean, scale, bias, y, _loops.ACTS[act], slope
    _share(_loops.normalise, arguments, m, x.size)
    _finish(y, act)
    return _images(y, x.shape), mean, rstd


def batch_norm_backward(
    g: Array, x: Array, y: Array, weight: Array, mean: Array, rstd: Array, act: str, slope: float
) -> tuple[Array, Array, Array]:
    if not _fast(g, x, y):
        return plain.batch_norm_backward(g, x, y, weight, mean, rstd, act, slope)
    g_rows, x_rows, y_rows = _rows(g), _rows(x), _rows(y)
    m, c = x_rows.shape
    code = _loops.ACTS[act]
    sums = _sums(c), _sums(c)
    arguments: tuple[Any, ...] = g_rows, x_rows, y_rows, mean, rstd, *sums, code, slope
    shards = _share(_loops.batch_norm_sums, arguments, m, x.size)
    gbias, gweight = (a[:shards, :c].sum(axis=0) for a in sums)
    scale = rstd if weight is None else rstd * weight
    means = (gbias / m).astype(np.float32), (gweight / m).astype(np.float32)
    gx = np.empty_like(g_rows)
    arguments = g_rows, x_rows, y_rows, mean, rstd, scale, *means, gx, code, slope
    _share(_loops.batch_norm_gradient, arguments, m, x.size)
    return _images(gx, x.shape), gweight.astype(np.float32), gbias.astype(np.float32)


def batch_norm_double_backward(
    ggx: Array, g: Array, x: Array, y: Array, weight: Array, mean: Array, rstd: Array,
    gweight: Array, gbias: Array, act: str, slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    channels = (mean, rstd, gweight, gbias)
    if not _fast(ggx, g, x, y) or not _all_float32(weight, *channels):
        args = (ggx, g, x, y, weight, *channels, act, slope)
        return plain.batch_norm_double_backward(*args)
    rows = [_rows(a) for a in (ggx, g, x, y)]
    m, c = rows[0].shape
    code = _loops.ACTS[act]
    sums = _sums(c), _sums(c), _sums(c)
    arguments = *rows, mean, rstd, *sums, code, slope
    shards = _share(_loops.batch_norm_double_sums, arguments, m, 2 * x.size)
    e_ggx, e_ggxx, e_product = (a[:shards, :c].sum(axis=0) / m for a in sums)
    e_ga, e_gax = gbias / np.float64(m), gweight / np.float64(m)
    both = e_product - e_ggx * e_ga
    scale = rstd if weight is None else rstd * weight
    coefficients = [
        a.astype(np.float32) for a in (e_ggx, e_ggxx, e_ga, e_gax, both - 3 * e_ggxx * e_gax)
    ]
    gg, gx = (np.empty_like(rows[0]) for _ in range(2))
    arguments = *rows, mean, rstd, scale, *coefficients, gg, gx, code, slope
    _share(_loops.batch_norm_double_gradient, arguments, m, 2 * x.size)
    gw = (m * rstd * (both - e_ggxx * e_gax)).astype(np.float32)
    return _images(gg, x.shape), _images(gx, x.shape), gw


# ------------------------------------------------------------------------------------------- Adam


def adam(
    p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int,
) -> None:  # fmt: skip
    arrays = (p, g, m, v)
    if not _fast(*arrays) or not all(a.ndim == 1 and a.flags.c_contiguous for a in arrays):
        return plain.adam(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step)
    rate, root = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    options = (beta1, beta2, rate, root, eps, 1 - lr * weight_decay)
    _share(_loops.adam, (*arrays, *options), p.size, 4 * p.size)


# ----------------------------------------------------------------------------------------- logits


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    if not _fast(x):
        return plain.bce_with_logits(x, target)
    loss, gx = np.empty(1, np.float32), np.empty(x.size, np.float32)
    threads.run(_loops.bce_with_logits, (_dense(x).reshape(-1), float(target), loss, gx), 1, 1)
    return loss.reshape(()), gx.reshape(x.shape)


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    if not _fast(real, fake):
        return plain.logistic_d(real, fake, target)
    loss, g = np.empty(1, np.float32), np.empty(real.size + fake.size, np.float32)
    both = _dense(real).reshape(-1), _dense(fake).reshape(-1)
    threads.run(_loops.logistic_d, (*both, float(target), loss, g), 1, 1)
    return loss.reshape(()), g


def logit_figures(real: Array, fake: Array) -> Array:
    if not _fast(real, fake):
        return plain.logit_figures(real, fake)
    figures = np.empty(6, np.float32)
    both = _dense(real).reshape(-1), _dense(fake).reshape(-1)
    threads.run(_loops.logit_figures, (*both, figures), 1, 1)
    return figures
