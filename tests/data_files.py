"""Makers of files that hold images, for the tests of the readers."""

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from minigan.data import DataError, load

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def idx(array, kind=8):
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, format, **options
    )
    return file.getvalue()


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def lay(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def refusal(spec, **options):
    """The message with which load refuses, checked to be one line that names the file."""
    with pytest.raises(DataError) as caught:
        load(spec, **options)
    message = str(caught.value)
    assert "\n" not in message and str(spec) in message
    return message


def tiff(array):
    return encode(array, "TIFF")


def exif(array, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encode(array, exif=tags)


def uint(*rows):
    return np.array(rows, np.uint8)


GREY = encode(IMAGES[0])
