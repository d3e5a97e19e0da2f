"""Initial weights: functions (shape, stream) -> float32 array, and the schemes of known libraries.

fan_in is the number of inputs that one output sums: shape[1] · the taps of a kernel. For transposed
convolutions, whose weight is (in, out, R, S), PyTorch takes the same shape[1], and so do we.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minigan.array import Stream

Init = Callable[[tuple[int, ...], Stream], np.ndarray]


def fan_in(shape: tuple[int, ...]) -> int:
    """shape[1] · shape[2] · ..."""
    return math.prod(shape[1:])


def fan_out(shape: tuple[int, ...]) -> int:
    """shape[0] · shape[2] · ..."""
    return shape[0] * math.prod(shape[2:])


def constant(value: float) -> Init:
    """Every element = value."""
    return lambda shape, stream: np.full(shape, value, np.float32)


zeros = constant(0.0)
ones = constant(1.0)


def uniform(low: float, high: float) -> Init:
    """U[low, high)"""
    return lambda shape, stream: stream.uniform(shape, low, high)


def normal(std: float, mean: float = 0.0) -> Init:
    """N(mean, std²)"""
    return lambda shape, stream: stream.normal(shape, mean, std)


def xavier_uniform(gain: float = 1.0) -> Init:
    """U(±gain · sqrt(6 / (fan_in + fan_out))).   Glorot & Bengio 2010, equation 16."""

    def init(shape: tuple[int, ...], stream: Stream) -> np.ndarray:
        bound = gain * math.sqrt(6 / (fan_in(shape) + fan_out(shape)))
        return stream.uniform(shape, -bound, bound)

    return init


def kaiming_uniform(a: float = math.sqrt(5)) -> Init:
    """U(±sqrt(6 / ((1 + a²) · fan_in))), a the leaky slope; by default U(±1/sqrt(fan_in)).

    He et al. 2015, section 2.2; a = sqrt(5) is the default of PyTorch's and ocaml-torch's layers.
    """

    def init(shape: tuple[int, ...], stream: Stream) -> np.ndarray:
        bound = math.sqrt(6 / ((1 + a * a) * fan_in(shape)))
        return stream.uniform(shape, -bound, bound)

    return init


def kaiming_normal(a: float = 0.0) -> Init:
    """N(0, 2 / ((1 + a²) · fan_in)).   He et al. 2015, section 2.2."""
    return lambda shape, stream: stream.normal(
        shape, 0.0, math.sqrt(2 / ((1 + a * a) * fan_in(shape)))
    )


def orthogonal(gain: float = 1.0) -> Init:
    """gain · a matrix (shape[0], the rest) with orthonormal rows or columns.   Saxe et al. 2014."""

    def init(shape: tuple[int, ...], stream: Stream) -> np.ndarray:
        rows, columns = shape[0], math.prod(shape[1:])
        q, r = np.linalg.qr(stream.normal((max(rows, columns), min(rows, columns))))
        q = q * np.sign(np.diag(r))  # makes it uniform over the orthogonal matrices
        return gain * np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape)

    return init


@dataclass(frozen=True)
class Scheme:
    """The initialisers of a library's layers. bias None: U(±1/sqrt(fan_in of the weight))."""

    linear: Init
    conv: Init
    conv_transpose: Init
    linear_bias: Init | None = None
    conv_bias: Init | None = None
    norm: Init = ones
    embedding: Init = field(default_factory=lambda: normal(1.0))


SCHEMES = {
    "pytorch": Scheme(
        linear=kaiming_uniform(), conv=kaiming_uniform(), conv_transpose=kaiming_uniform()
    ),
    # ocaml-torch's Layer: zero biases in convolutions, N(0, 0.1²) in transposed ones, and batch
    # norm scales drawn from U(0, 1).
    "ocaml-torch": Scheme(
        linear=kaiming_uniform(),
        conv=kaiming_uniform(),
        conv_transpose=normal(0.1),
        conv_bias=zeros,
        norm=uniform(0.0, 1.0),
    ),
    # Radford et al. 2016, section 4, with the batch norm scales of its reference code.
    "dcgan": Scheme(
        linear=normal(0.02),
        linear_bias=zeros,
        conv=normal(0.02),
        conv_bias=zeros,
        conv_transpose=normal(0.02),
        norm=normal(0.02, mean=1.0),
    ),
}


def scheme(name: str | Scheme) -> Scheme:
    """The Scheme of that name. Raises: ValueError that lists the names there are."""
    if isinstance(name, Scheme):
        return name
    if name not in SCHEMES:
        raise ValueError(f"unknown init scheme {name!r}: choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
