"""Readers of sets that are stored as arrays: IDX (MNIST's format) and .npz."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.lib.npyio import NpzFile

from minigan.data.dataset import DataError
from minigan.data.decode import one_line

MAX_CLASSES = 100_000  # a label above this is no class number, and a table of classes would not fit
CHUNK = 1 << 20

# What the images file is called in a folder of IDX files, best first.
IDX_NAMES = [
    f"{split}-images{sep}idx3-ubyte{gz}"
    for split in ("train", "t10k")
    for sep in "-."
    for gz in ("", ".gz")
]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not; ndim 3 is images (N,H,W), 1 is labels (N,).

    IDX: bytes 0, 0, 8 (unsigned byte), ndim; then each dimension as a big-endian uint32; then
    the values, row by row.

    Raises: DataError if the file is missing, empty, truncated, corrupt, or of another kind.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            if start == b"\x1f\x8b":
                with gzip.open(raw) as unzipped:
                    return _read_idx(path, cast(IO[bytes], unzipped), ndim)
            return _read_idx(path, raw, ndim)
    except DataError:
        raise
    except EOFError:
        raise DataError(f"{path}: the gzip stream is truncated: download it again") from None
    except Exception as error:  # zlib and gzip raise several kinds on corrupt input
        raise DataError(
            f"{path}: cannot be read ({one_line(error)}): check the path, or download it again"
        ) from None


def _read_idx(path: Path, file: IO[bytes], ndim: int) -> np.ndarray:
    magic = file.read(4)
    if not magic:
        raise DataError(f"{path}: the file is empty: download it again")
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an IDX file (it starts with {magic.hex(' ')}, not 00 00 08 03): "
            "give an IDX images file, a .npz, a folder or a .zip of images"
        )
    if magic[2] != 8:
        raise DataError(f"{path}: IDX values of type {magic[2]:#04x}: need 0x08, unsigned bytes")
    if magic[3] != ndim:
        kind = {1: "labels (1 dimension)", 3: "images (3 dimensions)"}
        raise DataError(
            f"{path}: IDX file with {magic[3]} dimensions where {kind[ndim]} are needed: "
            "give the images file, with its labels file beside it"
        )
    header = file.read(4 * ndim)
    if len(header) < 4 * ndim:
        raise DataError(f"{path}: truncated in the IDX header: download it again")
    shape = tuple(int(d) for d in np.frombuffer(header, ">u4"))
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path}: the IDX header announces no values, shape {shape}")
    # Chunk by chunk and one byte further, so that memory follows the file, not what it claims.
    body = bytearray()
    while chunk := file.read(min(CHUNK, size + 1 - len(body))):
        body += chunk
    if len(body) != size:
        found = f"{len(body)}" if len(body) < size else "more"
        raise DataError(
            f"{path}: the IDX header announces {size} bytes of values {shape}, "
            f"the file holds {found}: download it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def idx_labels_path(images: Path) -> Path | None:
    """The labels file that lies beside an images file under one of the usual names, or None."""
    stem = images.name.removesuffix(".gz")
    labels = re.sub("idx3", "idx1", re.sub("images", "labels", stem))
    if labels == stem:
        return None
    beside = (images.with_name(labels), images.with_name(labels + ".gz"))
    return next((p for p in beside if p.is_file()), None)


def read_idx_set(images_path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 (N,1,H,W), and labels int64 (N,) where a labels file lies beside.

    Raises: DataError as read_idx, and if the two files hold different numbers.
    """
    images = read_idx(images_path, 3)[:, None]  # (N,H,W) -> (N,1,H,W)
    labels_path = idx_labels_path(images_path)
    if labels_path is None:
        return images, None
    labels = read_idx(labels_path, 1)
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path}: {len(labels)} labels for {len(images)} images: the files do not "
            "belong together"
        )
    return images, labels.astype(np.int64)


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 (N,C,H,W) from the key `images`, labels int64 (N,) from `labels` if present.

    images may be uint8 (N,H,W), (N,H,W,C) or (N,C,H,W), C = 1 or 3. Nothing is unpickled.

    Raises: DataError if the file is missing, broken, or holds something else.
    """
    try:
        # Not np.load: it takes what is no zip for a pickle, and leaves a broken file open.
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as archive:
            names = archive.files
            if "images" not in names:
                raise DataError(
                    f"{path}: no array named images, only {', '.join(names) or 'nothing'}: "
                    "save it with np.savez(path, images=..., labels=...)"
                )
            arrays = {name: archive[name] for name in ("images", "labels") if name in names}
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path}: not an .npz, or truncated or corrupt ({one_line(error)}): "
            "save it with np.savez(path, images=...), or download it again"
        ) from None
    except Exception as error:  # of any kind: the bytes are anyone's
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: holds pickled objects, which could run code and are never read: "
                "save images as uint8 and labels as integers"
            ) from None
        raise DataError(f"{path}: cannot be read as .npz ({one_line(error)})") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NpzFile hands out other files as bytes
            raise DataError(f"{path}: {name} is no array: save it with np.savez")
    labels = _check_labels(path, arrays["labels"]) if "labels" in arrays else None
    return _check_images(path, arrays["images"]), labels


def _check_images(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise DataError(
            f"{path}: images are {images.dtype}, not uint8: scale them to 0 .. 255 and cast"
        )
    if images.ndim == 3:
        images = images[:, None]  # (N,H,W) -> (N,1,H,W)
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)  # (N,H,W,C) -> (N,C,H,W)
    elif not (images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: images have the shape {images.shape}: "
            "need (N,H,W), (N,H,W,C) or (N,C,H,W) with C = 1 or 3"
        )
    if images.size == 0:
        raise DataError(f"{path}: no image in it: the shape is {images.shape}")
    if images.max() == 1:
        raise DataError(f"{path}: images hold only 0 and 1: multiply them by 255")
    return np.ascontiguousarray(images)


def _check_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: labels are {labels.dtype} {labels.shape}: need one integer for each image"
        )
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
        raise DataError(
            f"{path}: labels span {labels.min()} .. {labels.max()}: "
            f"need class numbers from 0, below {MAX_CLASSES}"
        )
    return labels.astype(np.int64)
