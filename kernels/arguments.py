"""Arguments of a kernel from text, for `minigan kernels run`.

    n=1024   a=0.5   x=randn(n)   y=zeros(n, 64)   i=arange(n)   p=null

A value is a number, an expression of numbers and of earlier scalars, or an array by its shape:
randn, rand (uniform 0 .. 1), zeros, ones, full(shape..., value), arange(n), and empty, which counts
as unwritten: to read it before it was written is a fault.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.kernels import sim

ARRAYS = ("randn", "rand", "zeros", "ones", "full", "arange", "empty")

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}

MAX_ELEMENTS = 1 << 28


class ArgumentError(ValueError):
    """A value that cannot be read; the message says why and shows one that can."""


def parse(text: str, known: dict[str, Any], dtype: Any, rng: np.random.Generator) -> Any:
    """The value of an expression: a number, a NumPy array of that dtype, or None for null.

    known: earlier arguments, of which scalars may be named.   Raises: ArgumentError.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ArgumentError(f"cannot read {text!r}: say for example randn(1024) or 0.5") from None
    if isinstance(node, ast.Name) and node.id in ("null", "nullptr"):
        return None
    if isinstance(node, ast.Call):
        return _array(text, node, known, dtype, rng)
    return _scalar(text, node, known)


def _scalar(text: str, node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _scalar(text, node.operand, known)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _scalar(text, node.left, known), _scalar(text, node.right, known)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ArgumentError(f"{text!r}: an exponent of at most 64")
        try:
            return _OPERATORS[type(node.op)](left, right)
        except (ArithmeticError, ValueError) as error:
            raise ArgumentError(f"{text!r}: {error}") from None
    if isinstance(node, ast.Name):
        if isinstance(known.get(node.id), (int, float)):
            return known[node.id]
        scalars = [name for name, value in known.items() if isinstance(value, (int, float))]
        raise ArgumentError(
            f"{text!r}: {node.id} is no scalar given before it"
            + (f" (those are {', '.join(scalars)})" if scalars else "")
        )
    raise ArgumentError(
        f"cannot read {text!r}: a number, an expression of numbers, or one of "
        f"{', '.join(f'{name}(shape)' for name in ARRAYS)}"
    )


def _array(
    text: str, node: ast.Call, known: dict[str, Any], dtype: Any, rng: np.random.Generator
) -> np.ndarray:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in ARRAYS or node.keywords:
        raise ArgumentError(f"{text!r}: arrays are made by {', '.join(ARRAYS)}")
    sizes: list[Any] = []
    for argument in node.args:  # zeros(4, 8) and zeros((4, 8)) are the same
        parts: Sequence[ast.expr] = argument.elts if isinstance(argument, ast.Tuple) else [argument]
        sizes += [_scalar(text, part, known) for part in parts]
    value = sizes.pop() if name == "full" and sizes else 0
    if not sizes or any(int(n) != n or n < 0 for n in sizes):
        raise ArgumentError(f"{text!r}: a shape is whole numbers ≥ 0, like {name or 'zeros'}(1024)")
    if name == "arange" and len(sizes) != 1:
        raise ArgumentError(f"{text!r}: arange takes one number")
    shape = tuple(int(n) for n in sizes)
    if math.prod(shape) > MAX_ELEMENTS:
        raise ArgumentError(f"{text!r}: at most {MAX_ELEMENTS} elements; sim is slow beyond 10^7")
    if name == "empty":
        return sim.empty(shape, dtype)
    if name in ("randn", "rand"):
        drawn: Any = rng.standard_normal(shape) if name == "randn" else rng.random(shape)
        if np.dtype(dtype).kind in "iu":  # whole numbers 0 .. 99 in the place of fractions
            drawn = rng.integers(0, 100, shape)
        return drawn.astype(dtype)
    if name == "arange":
        return np.arange(shape[0]).astype(dtype)
    return np.full(shape, 1 if name == "ones" else value, dtype)


def sizes(option: str, text: str) -> tuple[int, ...]:
    """(x, y, z) of `4`, `4,2` or `4,2,1`.   Raises: ArgumentError."""
    try:
        found = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 3 or min(found) < 1:
        raise ArgumentError(f"{option} {text}: give one to three sizes above 0, like 4 or 4,2")
    return found
