"""A stand-in for CuPy that needs no GPU: it counts what would be launched on one.

Arrays are a subclass of NumPy's that refuses what CuPy's refuse: to meet a NumPy array, or to
become one silently. Kernels run on sim. Names that the installed CuPy lacks are refused too.
"""

import contextlib
import importlib.util
import sys
import types
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from minigan.kernels import launcher, sim


@dataclass
class Tally:
    """kernels: launches of ours by name; others: CuPy's own by name; transfers to the device and
    back; syncs: where the host waits for the device."""

    kernels: Counter = field(default_factory=Counter)
    others: Counter = field(default_factory=Counter)
    transfers: Counter = field(default_factory=Counter)
    syncs: Counter = field(default_factory=Counter)

    @property
    def launches(self):
        return self.kernels.total() + self.others.total()

    graphs: int = 0

    def clear(self):
        self.graphs = 0
        for counter in (self.kernels, self.others, self.transfers, self.syncs):
            counter.clear()


tally = Tally()
SYNCING = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist")
ONE_KERNEL = ("sum", "mean", "max", "min", "var", "std", "any", "all", "argmax", "argmin", "cumsum",
              "prod", "round", "clip", "take", "repeat", "sort", "argsort", "fill")  # fmt: skip
NO_KERNEL = ("reshape", "transpose", "squeeze", "swapaxes", "broadcast_to", "expand_dims", "empty",
             "empty_like", "ndim", "shape", "result_type", "dtype", "finfo", "iinfo",
             "broadcast_shapes", "moveaxis", "atleast_1d", "may_share_memory")  # fmt: skip


class Device:
    id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class ndarray(np.ndarray):
    device = Device()

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        _refuse_host(ufunc.__name__, (*inputs, *(out or ())))
        tally.others[f"{ufunc.__name__}.{method}" if method != "__call__" else ufunc.__name__] += 1
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        return out[0] if out is not None else _wrap(result)

    def __array_function__(self, function, types, args, kwargs):
        return _call(function.__name__, function, args, kwargs)

    def __setitem__(self, index, value):
        _refuse_host("__setitem__", (value,))
        tally.others["__setitem__"] += 1
        _plain(self)[_plain_all(index)] = _plain(value)

    def __getitem__(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        _refuse_host("__getitem__", parts)
        if any(isinstance(p, (np.ndarray, list)) for p in parts):
            tally.others["__getitem__"] += 1
            return _wrap(_plain(self)[_plain_all(index)])
        keeps = (slice, type(None), type(...))
        basic = tuple(p if isinstance(p, keeps) else slice(p, p + 1 or None) for p in parts)
        view = super().__getitem__(basic)  # an element is an array without axes, not a scalar
        drop, axis = [], 0
        for p in parts:
            if p is Ellipsis:
                axis = self.ndim - sum(q is not None and q is not Ellipsis for q in parts[1:])
                continue
            if not isinstance(p, (slice, type(None))):
                drop.append(axis)
            axis += 1
        return np.ndarray.reshape(view, [n for i, n in enumerate(view.shape) if i not in drop])

    def copy(self, order="C"):
        tally.others["copy"] += 1
        return _wrap(_plain(self).copy())

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        tally.others["astype"] += 1
        return _wrap(_plain(self).astype(dtype))

    def set(self, values):
        assert self.shape == values.shape and self.dtype == values.dtype
        tally.transfers["to the device"] += 1
        _plain(self)[...] = values

    def get(self):
        tally.transfers["to the host"] += 1
        tally.syncs["get"] += 1
        return np.array(_plain(self))

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion to a NumPy array is not allowed; use .get()")


def _add_methods():
    for name in ONE_KERNEL:

        def method(self, *args, _name=name, **kwargs):
            return _call(_name, getattr(np.ndarray, _name), (self, *args), kwargs)

        setattr(ndarray, name, method)
    for name in SYNCING:

        def waits(self, *args, _name=name):
            tally.syncs[_name] += 1
            return getattr(_plain(self), _name)(*args)

        setattr(ndarray, name, waits)


_add_methods()


def _plain(a):
    return a.view(np.ndarray) if isinstance(a, ndarray) else a


def _plain_all(index):
    return tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)


def _wrap(result):
    """A device array that owns its memory."""
    if isinstance(result, (np.ndarray, np.generic)):
        made = ndarray(np.shape(result), result.dtype)
        _plain(made)[...] = result
        return made
    return [_wrap(r) for r in result] if isinstance(result, (list, tuple)) else result


def _refuse_host(name, values):
    for value in values:
        if isinstance(value, np.ndarray) and not isinstance(value, ndarray):
            raise TypeError(f"{name}: unsupported type numpy.ndarray of shape {value.shape}")


def _deep(value, convert):
    if isinstance(value, (list, tuple)):
        return type(value)(_deep(v, convert) for v in value)
    return convert(value)


def _call(name, function, args, kwargs):
    """A function of CuPy: one launch, unless it only makes a view or an unwritten array."""
    _refuse_host(name, args)
    if name in ("reshape", "transpose", "squeeze", "swapaxes", "broadcast_to", "expand_dims",
                "moveaxis"):  # fmt: skip
        method = getattr(np.ndarray, name, None)
        return (method or function)(*args, **kwargs) if method else _view(function, args, kwargs)
    if name not in NO_KERNEL:
        tally.others[name] += 1
    out = kwargs.pop("out", None)
    result = function(*_deep(args, _plain), **{k: _deep(v, _plain) for k, v in kwargs.items()})
    if out is not None:
        _plain(out)[...] = result
        return out
    return _wrap(result)


def _view(function, args, kwargs):
    return function(_plain(args[0]), *args[1:], **kwargs).view(ndarray)


class RawModule:
    """The kernels of a source, run on sim."""

    runs = True

    def __init__(self, *, code, options=()):
        self.code = code
        defines = (o[2:].partition("=") for o in options if o.startswith("-D"))
        self.defines = {key: value for key, _, value in defines}
        self.module = sim.load(code, defines=self.defines) if self.runs else None

    def get_function(self, name):
        pointers = [p.pointer for p in self.module.signatures[name]] if self.runs else []

        def launch(grid, block, args):
            tally.kernels[name] += 1
            _refuse_host(name, args)
            if not self.runs:
                return
            if Stream.current.recorded is not None:
                Stream.current.recorded.append(lambda: run(grid, block, args))
            else:
                run(grid, block, args)

        def run(grid, block, args):
            passed = [None if p and not isinstance(a, ndarray) else _plain(a)
                      for p, a in zip(pointers, args, strict=True)]  # fmt: skip
            self.module.launch(name, grid, block, *passed, checks=False)

        return launch


class Stream:
    """Captures launches of our kernels. Anything else in a capture is an error here."""

    def __init__(self, non_blocking=False):
        self.recorded, self.before = None, []

    def __enter__(self):
        self.before.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *_):
        Stream.current = self.before.pop()

    def use(self):
        Stream.current = self

    def synchronize(self):
        tally.syncs["synchronize"] += 1

    def begin_capture(self, mode=None):
        self.recorded = []
        self.counted = [Counter(c) for c in (tally.others, tally.transfers, tally.syncs)]

    def end_capture(self):
        now = (tally.others, tally.transfers, tally.syncs)
        more = [Counter(c) - was for c, was in zip(now, self.counted, strict=True)]
        assert not any(more), f"not captured: {more}"
        recorded, self.recorded = self.recorded, None

        def launch(stream=None):
            tally.graphs += 1
            for run in recorded:
                run()

        return types.SimpleNamespace(launch=launch)


Stream.null = Stream.current = Stream()


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    tally.transfers["to the device"] += 1
    return _wrap(np.asarray(a, dtype))


def _module():
    real = None
    if importlib.util.find_spec("cupy"):
        import cupy as real
    fake = types.ModuleType("cupy")

    def look_up(name):
        if real is not None and not hasattr(real, name):
            raise AttributeError(f"the installed CuPy has no {name}")
        function = getattr(np, name)
        if not callable(function) or isinstance(function, type):
            return function
        return lambda *args, **kwargs: _call(name, function, args, kwargs)

    fake.__getattr__ = look_up
    fake.ndarray, fake.asarray, fake.array = ndarray, asarray, asarray
    fake.ascontiguousarray = lambda a: a if a.flags.c_contiguous else a.copy()
    fake.RawModule = RawModule
    fake.empty = lambda shape, dtype=float: _wrap(np.zeros(shape, dtype))
    fake.empty_like = lambda a: _wrap(np.zeros(a.shape, a.dtype))
    fake.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: Stream.current,
        MemoryPool=lambda: types.SimpleNamespace(malloc=None),
        using_allocator=lambda malloc: contextlib.nullcontext(),
        runtime=types.SimpleNamespace(streamCaptureModeRelaxed=2),
    )
    return fake


@contextlib.contextmanager
def stand_in(runs=True):
    """Context manager: device cuda is this; yields its tally. Unless `runs`, kernels are counted
    and leave zeros."""
    before = sys.modules.get("cupy")
    fake = _module()
    sys.modules["cupy"] = fake
    launcher.gpu_function.cache_clear()
    tally.clear()
    RawModule.runs, Stream.current = runs, Stream.null
    try:
        yield tally
    finally:
        RawModule.runs = True
        launcher.gpu_function.cache_clear()
        if before is None:
            del sys.modules["cupy"]
        else:
            sys.modules["cupy"] = before
