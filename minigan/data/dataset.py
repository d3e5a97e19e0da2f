"""A set of images in memory, and the two maps between its bytes and the range that nets see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigan.array import to_numpy

ValueRange = tuple[float, float]

VALUE_RANGE: ValueRange = (-1.0, 1.0)  # that of tanh, the usual last layer of a generator


class DataError(ValueError):
    """Data that cannot be used. The message is one line: the file, what is wrong, what to do."""


def to_float(images: Any, value_range: ValueRange = VALUE_RANGE) -> np.ndarray:
    """x = low + u/255 · (high - low): uint8 u, any shape -> float32 in [low, high]."""
    low, high = check_value_range(value_range)
    u = to_numpy(images)
    if u.dtype != np.uint8:
        raise DataError(f"to_float: images must be uint8, not {u.dtype}")
    x = u.astype(np.float32)
    x /= np.float32(255)
    x *= np.float32(high - low)
    x += np.float32(low)
    return x


def to_uint8(samples: Any, value_range: ValueRange = VALUE_RANGE) -> np.ndarray:
    """u = clip(round((x - low) · 255 / (high - low)), 0, 255): float x, any shape -> uint8.

    All that is written to disk, samples and real images alike, goes through this function, so a
    wrong range shows in both. It inverts to_float exactly.

    Raises: DataError if samples are no floats, or hold NaN, which no byte can stand for.
    """
    low, high = check_value_range(value_range)
    x = to_numpy(samples)
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"to_uint8: samples must be floats in [{low:g}, {high:g}], not {x.dtype}")
    x = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    nan = int(np.isnan(x).sum())
    if nan:
        raise DataError(f"to_uint8: {nan} of {x.size} values are NaN: the generator has diverged")
    x -= x.dtype.type(low)
    x *= x.dtype.type(255 / (high - low))
    return np.clip(np.rint(x, out=x), 0, 255, out=x).astype(np.uint8)


def check_value_range(value_range: ValueRange) -> ValueRange:
    """Return (low, high) if both are finite and low < high. Raises: DataError."""
    low, high = value_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DataError(f"value_range must be (low, high) with low < high, not ({low}, {high})")
    return low, high


def check_range(x: np.ndarray, value_range: ValueRange) -> None:
    """Assert that x lies in the declared range, up to rounding. Raises: DataError."""
    low, high = check_value_range(value_range)
    slack = 1e-6 * max(abs(low), abs(high))
    if not (x.min() >= low - slack and x.max() <= high + slack):  # NaN fails both
        raise DataError(
            f"images span [{x.min():g}, {x.max():g}], outside the declared value_range "
            f"({low:g}, {high:g}): scale them, or declare their range"
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as bytes, and the range in which nets are to see them.

    images       uint8 (N,C,H,W), C = 1 or 3
    labels       int64 (N,), each in 0 .. classes - 1; None if there are none
    classes      how many classes there are; None without labels
    class_names  one for each class, or ()
    name, source what to call it; where it came from, and its licence where one is known
    value_range  the range of to_float
    skipped      (name, reason) of each file that could not be used

    Raises: DataError if the fields do not fit together.
    """

    images: np.ndarray = field(repr=False)
    labels: np.ndarray | None = field(repr=False)
    classes: int | None
    name: str
    source: str
    value_range: ValueRange = VALUE_RANGE
    class_names: tuple[str, ...] = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape, dtype = self.images.shape, self.images.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
            raise DataError(
                f"{self.name}: images must be uint8 (N,C,H,W), C = 1 or 3, none of them 0; "
                f"these are {dtype} {shape}"
            )
        check_value_range(self.value_range)
        if (self.labels is None) != (self.classes is None):
            raise DataError(f"{self.name}: give both labels and classes, or neither")
        if self.labels is not None and self.classes is not None:
            if self.labels.shape != shape[:1] or self.labels.dtype != np.int64:
                raise DataError(
                    f"{self.name}: labels must be int64 ({shape[0]},), one for each image; "
                    f"these are {self.labels.dtype} {self.labels.shape}"
                )
            if self.labels.min() < 0 or self.labels.max() >= self.classes:
                raise DataError(
                    f"{self.name}: labels must lie in 0 .. {self.classes - 1}; these span "
                    f"{self.labels.min()} .. {self.labels.max()}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        n, c, h, w = self.images.shape
        classes = f", {self.classes} classes" if self.classes else ""
        skipped = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return f"{self.name}: {n} images {c}×{h}×{w}{classes}{skipped}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def to_float(self, images: Any) -> np.ndarray:
        """uint8 of any shape -> float32 in this set's value_range."""
        return to_float(images, self.value_range)
