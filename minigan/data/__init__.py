"""Data: readers, the embedded digits, endless shuffled batches, pictures on disk.

`load` reads a set from what a user names; `Batches` draws from it; `to_uint8` turns samples into
bytes; `grid`, `save_png` and `save_gif` write them. All bad input raises `DataError`.
"""

from minigan.data.batches import Batches
from minigan.data.dataset import (
    VALUE_RANGE,
    DataError,
    Dataset,
    ValueRange,
    check_range,
    to_float,
    to_uint8,
)
from minigan.data.images import grid, save_gif, save_png
from minigan.data.loading import NAMES, load

__all__ = [
    "NAMES",
    "VALUE_RANGE",
    "Batches",
    "DataError",
    "Dataset",
    "ValueRange",
    "check_range",
    "grid",
    "load",
    "save_gif",
    "save_png",
    "to_float",
    "to_uint8",
]
