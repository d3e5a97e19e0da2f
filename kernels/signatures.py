"""What the kernels of kernels/*.cu take: their signatures, and arguments checked against them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigan.array import Array, xp_of

FOLDER = Path(__file__).parent

TYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "unsigned": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "i64": np.dtype(np.int64),
}


class Parameter(NamedTuple):
    """dtype: of the scalar, or of the array's elements."""

    name: str
    dtype: np.dtype[Any]
    is_array: bool


class Signature(NamedTuple):
    """A kernel as its file declares it."""

    file: str
    parameters: tuple[Parameter, ...]


def parse_signatures(file: str, source: str) -> dict[str, Signature]:
    """The extern "C" kernels of a CUDA source, by name."""
    signatures = {}
    pattern = r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)'
    for name, parameters in re.findall(pattern, source):
        parsed = []
        for declaration in parameters.split(","):
            match = re.fullmatch(r"(?:const )?(\w+)(\*?) (\w+)", " ".join(declaration.split()))
            if match is None or match[1] not in TYPES:
                raise ValueError(f"{file}: {name}: cannot read the parameter {declaration!r}")
            parsed.append(Parameter(match[3], TYPES[match[1]], bool(match[2])))
        signatures[name] = Signature(file, tuple(parsed))
    return signatures


@cache
def texts_of(file: str) -> dict[str, str]:
    """The text of a file of this folder, and before it that of the file that it is "After", if its
    first line says so: they are compiled as one.   Returns: texts by names."""
    text = (FOLDER / file).read_text(encoding="utf-8")
    after = re.match(r"// After (\w+\.cu):", text)
    return (texts_of(after[1]) if after else {}) | {file: text}


def source_of(file: str) -> str:
    """What is compiled for a file: with more than one text, #line says whose lines are whose."""
    texts = texts_of(file)
    if len(texts) == 1:
        return texts[file]
    return "".join(f'#line 1 "{name}"\n{text}' for name, text in texts.items())


@cache
def signatures() -> dict[str, Signature]:
    """Every kernel of kernels/*.cu, by name."""
    found: dict[str, Signature] = {}
    for path in sorted(FOLDER.glob("*.cu")):
        found |= parse_signatures(path.name, source_of(path.name))
    return found


def checked(kernel: str, parameter: Parameter, arg: Any) -> Any:
    """arg, cast if it is a scalar. None passes for an array: a null pointer.

    Raises: TypeError, ValueError that name kernel and argument.
    """
    name, dtype, is_array = parameter
    where = f"{kernel}: argument {name}"
    if not is_array:
        if np.ndim(arg) != 0:
            raise TypeError(f"{where} is a scalar, not an array of shape {np.shape(arg)}")
        if dtype.kind in "iu":
            if int(arg) != arg or not np.iinfo(dtype).min <= arg <= np.iinfo(dtype).max:
                raise ValueError(f"{where} = {arg} is no {dtype}")
            return dtype.type(int(arg))
        return dtype.type(arg)
    if arg is None:
        return None
    if not isinstance(arg, xp_of(arg).ndarray):
        raise TypeError(f"{where} is an array, not {type(arg).__name__}")
    if arg.dtype != dtype:
        raise TypeError(f"{where} has dtype {arg.dtype}, not {dtype}")
    if not arg.flags.c_contiguous:
        raise ValueError(
            f"{where} is not C-contiguous: shape {arg.shape}, strides {arg.strides}; "
            "copy it with ascontiguousarray"
        )
    return arg


def common_device(kernel: str, arrays: Mapping[str, Array]) -> int | None:
    """The GPU that holds all arrays, or None for host memory."""
    devices = {name: None if xp_of(a) is np else a.device.id for name, a in arrays.items()}
    if len(set(devices.values())) > 1:
        where = ", ".join(
            f"{name} in host memory" if device is None else f"{name} on GPU {device}"
            for name, device in devices.items()
        )
        raise ValueError(f"{kernel}: arguments lie on different devices: {where}")
    return next(iter(devices.values()), None)


def three_sizes(kernel: str, what: str, dims: Sequence[int]) -> tuple[int, ...]:
    """The grid or block as three sizes."""
    if not 1 <= len(dims) <= 3 or min(dims) < 0:
        raise ValueError(f"{kernel}: {what} must be one to three sizes, not {tuple(dims)}")
    return (*(int(d) for d in dims), *[1] * (3 - len(dims)))
