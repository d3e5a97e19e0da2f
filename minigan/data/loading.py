"""`load`: from what a user names to a Dataset."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np

from minigan.data.arrays import IDX_NAMES, read_idx_set, read_npz
from minigan.data.dataset import DataError, Dataset
from minigan.data.decode import check_options, fit_images
from minigan.data.download import KNOWN_SETS, Progress, fetch
from minigan.data.folders import read_pictures

EMBEDDED = "mnist-10k"
NAMES = (EMBEDDED, *KNOWN_SETS)


def load(
    spec: str | os.PathLike[str],
    *,
    size: int | None = None,
    fit: str = "crop",
    channels: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a set of images.

    spec      the name of a known set: mnist-10k (embedded), mnist, fashion-mnist (downloaded
              once); or a path (./mnist for a folder of that name):
              an IDX images file, gzipped or not, its labels beside it; a folder of such files;
              an .npz with images uint8 (N,H,W), (N,H,W,C) or (N,C,H,W) and perhaps labels;
              a folder or .zip of pictures, whose subfolders, where there are several, are labels
    size      side of the square to bring each image to; None keeps them, all of one size
    fit       how: "crop", "pad" (white) or "stretch"
    channels  1 (grey), 3 (RGB), or None: as they are
    progress  called with (file name, bytes so far, bytes in all or 0) during a download

    A picture that cannot be read is skipped, and listed in the result's `skipped`.

    Raises: DataError, one line that names the file, what is wrong, and what to do.
    """
    check_options(size, fit, channels)
    text = os.fspath(spec)
    if not text:
        raise DataError(f"data: no name given: known sets are {', '.join(NAMES)}; or give a path")
    if text == EMBEDDED:
        images, labels = read_npz(Path(__file__).with_name(f"{EMBEDDED}.npz"))
        source = "MNIST, 1,000 a class of the training set; Y. LeCun and C. Cortes; CC BY-SA 3.0"
        class_names = tuple("0123456789")
    elif text in KNOWN_SETS:
        known = KNOWN_SETS[text]
        path = fetch(known, progress)[0]
        try:
            images, labels = read_idx_set(path)
        except DataError as error:
            raise DataError(f"{error} (delete {path.parent} to do so)") from None
        source, class_names = known.source, known.class_names
    else:
        return _load_path(Path(text), size, fit, channels)
    return _dataset(fit_images(images, size, fit, channels), labels, text, source, class_names)


def _load_path(path: Path, size: int | None, fit: str, channels: int | None) -> Dataset:
    # os.path's tests are False, where Path's raise, on a path that the system refuses.
    source, suffix = str(path), path.suffix.lower()
    name = os.path.basename(os.path.abspath(path))
    if os.path.isdir(path):
        idx = next((path / n for n in IDX_NAMES if os.path.isfile(path / n)), None)
        suffix = ""
    elif os.path.isfile(path):
        idx = None if suffix in (".npz", ".zip") else path
    elif os.path.exists(path):
        raise DataError(f"{path}: neither a file nor a folder: give a file or folder of images")
    else:
        close = difflib.get_close_matches(source, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known sets are {', '.join(NAMES)}"
        raise DataError(f"{path}: no such file or folder, and no known set: {hint}")
    if idx is not None:
        images, labels = read_idx_set(idx)
    elif suffix == ".npz":
        images, labels = read_npz(path)
    else:
        pictures = read_pictures(path, size, fit, channels)
        return _dataset(
            pictures.images, pictures.labels, name, source, pictures.class_names, pictures.skipped
        )
    return _dataset(fit_images(images, size, fit, channels), labels, name, source)


def _dataset(
    images: np.ndarray,
    labels: np.ndarray | None,
    name: str,
    source: str,
    class_names: tuple[str, ...] = (),
    skipped: list[tuple[str, str]] | None = None,
) -> Dataset:
    classes = None
    if labels is not None:
        classes = len(class_names) or int(labels.max(initial=0)) + 1
    return Dataset(
        images, labels, classes, name, source, class_names=class_names, skipped=skipped or []
    )
