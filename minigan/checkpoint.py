"""Checkpoints: one safetensors file each, with the rest of the state as JSON in its header.

A checkpoint is written whole or not at all (files.write_atomic). It carries a CRC-32 of every
tensor, so that damage is noticed; the newest good one of a folder is found by looking.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from minigan.files import write_atomic

_NAME = re.compile(r"step-(\d+)\.safetensors")


class CheckpointError(ValueError):
    """The file is not a checkpoint that can be used; one line that says why."""


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by name.   state: whatever JSON holds, with the `step` reached and the `recipe`."""

    tensors: dict[str, np.ndarray]
    state: dict[str, Any]


def _crc(a: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint`, whole or not at all.   Raises: OSError."""
    crcs = {name: _crc(a) for name, a in checkpoint.tensors.items()}
    metadata = {"minigan": json.dumps({"state": checkpoint.state, "crc32": crcs})}
    tensors = {name: np.asarray(a, order="C") for name, a in checkpoint.tensors.items()}
    write_atomic(path, to_bytes(tensors, metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.   Raises: CheckpointError; OSError if the file cannot be read."""
    with open(path, "rb"):
        pass  # an OSError of its own for a file that is missing or may not be read
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {error}") from None
    try:
        header = json.loads(metadata["minigan"])
        state, crcs = header["state"], header["crc32"]
        if not isinstance(state["recipe"], dict) or not isinstance(state["step"], int):
            raise TypeError
    except (KeyError, TypeError, json.JSONDecodeError):
        raise CheckpointError(f"{path} is a safetensors file, but no minigan checkpoint") from None
    for name, a in tensors.items():
        if crcs.get(name) != _crc(a):
            raise CheckpointError(f"{path} is damaged: the CRC-32 of {name} does not match")
    if tensors.keys() != crcs.keys():
        raise CheckpointError(f"{path} is damaged: tensors are missing")
    return Checkpoint(tensors, state)


def path_of(folder: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.safetensors"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name, or -1 if it has another one."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def all_in(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the newest first."""
    found = [p for p in folder.glob("step-*.safetensors") if step_of(p) >= 0]
    return sorted(found, key=step_of, reverse=True)


def candidates(folder: Path) -> Iterator[tuple[Path, Checkpoint | CheckpointError]]:
    """Each checkpoint of a folder, the newest first: read, or the reason why it cannot be."""
    for path in all_in(folder):
        try:
            yield path, load(path)
        except CheckpointError as error:
            yield path, error


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what an interrupted write left."""
    for path in all_in(folder)[keep:]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.tmp"):
        path.unlink(missing_ok=True)
