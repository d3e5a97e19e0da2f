"""Reader of sets that are a folder or a zip of picture files."""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from minigan.data.dataset import DataError
from minigan.data.decode import fit_picture, one_line, read_picture

IGNORED = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # and all names that start with a dot
MAX_MEMBER = 256 * 2**20  # bytes of one picture file unzipped; more is a zip bomb


class Pictures(NamedTuple):
    """What a folder or zip held: images uint8 (N,C,H,W), and labels if its subfolders are them."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    skipped: list[tuple[str, str]]


Entry = tuple[str, Callable[[], IO[bytes]]]  # the name inside the set, how to open it


def read_pictures(path: Path, size: int | None, fit: str, channels: int | None) -> Pictures:
    """Read each picture below a folder or in a zip, in the order of their names.

    Files that cannot be used are skipped and listed; hidden ones are ignored. With channels None
    the set is grey if every picture is, else RGB. If every picture lies in a subfolder, and there
    are several, those are the classes, sorted by name (by number if all names are numbers).

    Raises: DataError if no picture can be used, or if they differ in size and `size` is None.
    """
    images: list[np.ndarray] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow's remarks on files that it does read
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        entries = _zip_entries(path, stack) if path.is_file() else _folder_entries(path)
        for name, open_file in entries:
            try:
                with open_file() as file:
                    image = fit_picture(read_picture(file), size, fit, channels)
            except UnidentifiedImageError:
                skipped.append((name, "not a picture of a known format"))
            except Exception as error:  # Pillow and zipfile raise many kinds on corrupt files
                skipped.append((name, one_line(error)))
            else:
                if images and image.shape[1:] != images[0].shape[1:]:
                    raise DataError(
                        f"{path}: pictures differ in size: {names[0]} is {_hw(images[0])}, "
                        f"{name} is {_hw(image)}: choose a size for all of them"
                    )
                images.append(image)
                names.append(name)
    if not images:
        if not skipped:
            raise DataError(f"{path}: no picture in it: give a folder or zip of PNG or JPEG files")
        name, reason = skipped[0]
        raise DataError(
            f"{path}: no usable picture: {len(skipped)} skipped, the first {name}: {reason}"
        )
    c = max(image.shape[0] for image in images)
    same = [np.broadcast_to(image, (c, *image.shape[1:])) for image in images]  # grey -> RGB
    return Pictures(np.ascontiguousarray(np.stack(same)), *_labels(names), skipped)


def _hw(image: np.ndarray) -> str:
    return f"{image.shape[1]}×{image.shape[2]}"


def _usable(name: str) -> bool:
    return not (name.startswith(".") or name in IGNORED)


def _printable(name: str) -> str:
    """A name in any encoding, as text that any terminal or log takes on one line."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "�" for char in text)


def _folder_entries(root: Path) -> Iterator[Entry]:
    files: list[Path] = []
    seen: set[str] = set()  # links may lead in a circle
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else [s for s in subfolders if _usable(s)]
        if real not in seen:
            files += [Path(folder, name) for name in names if _usable(name)]
        seen.add(real)
    for file in sorted(files, key=lambda f: f.relative_to(root).parts):
        name = _printable(file.relative_to(root).as_posix())
        yield name, partial(_open_regular, file)


def _open_regular(file: Path) -> IO[bytes]:
    if file.exists() and not file.is_file():
        raise DataError("not a regular file")  # opening a pipe would wait for ever
    return file.open("rb")


def _zip_entries(path: Path, stack: ExitStack) -> Iterator[Entry]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except Exception as error:  # BadZipFile, and others on a corrupt directory
        raise DataError(
            f"{path}: not a zip, or truncated ({one_line(error)}): make or download it again"
        ) from None
    for member in sorted(archive.infolist(), key=lambda m: m.filename.split("/")):
        parts = PurePosixPath(member.filename).parts
        if not member.is_dir() and all(_usable(part) for part in parts):
            name = _printable(member.filename)
            yield name, partial(_open_member, archive, member)


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.file_size > MAX_MEMBER:
        raise DataError(f"{member.file_size} bytes unzipped, above the limit of {MAX_MEMBER}")
    return io.BytesIO(archive.read(member))


def _labels(names: list[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from the first folder in which the names differ, if each name has one there."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    levels = list(zip(*folders, strict=False))  # as deep as the shallowest picture lies
    found = next((level for level in levels if len(set(level)) > 1), None)
    if found is None:
        return None, ()
    numeric = all(re.fullmatch(r"[0-9]+", f) for f in found)
    classes = sorted(set(found), key=lambda f: (int(f) if numeric else 0, f))
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[f] for f in found], np.int64), tuple(classes)
