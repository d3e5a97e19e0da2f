"""Whatever the bytes: a set, a skipped file or a DataError."""

import gzip

import numpy as np
import pytest
from data_files import (
    GREY,
    IMAGES,
    LABELS,
    encode,
    exif,
    idx,
    lay,
    npz,
    refusal,
    zipped,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigan.data import DataError, load

PLAIN = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(40), np.arange(40)).astype(np.uint8)
PICTURES = {
    "png": encode(PLAIN),
    "palette.png": encode(Image.fromarray(PLAIN).quantize(9), transparency=2),
    "jpg": encode(SMOOTH, "JPEG"),
    "progressive.jpg": encode(SMOOTH, "JPEG", progressive=True),
    "gif": encode(SMOOTH, "GIF"),
    "bmp": encode(PLAIN, "BMP"),
    "tif": encode(PLAIN, "TIFF"),
    "lzw.tif": encode(SMOOTH, "TIFF", compression="tiff_lzw"),
    "webp": encode(SMOOTH, "WEBP"),
    "ppm": encode(PLAIN, "PPM"),
    "tga": encode(PLAIN, "TGA"),
    "exif.png": exif(PLAIN, 6),
}
CONTAINERS = {
    "a-images-idx3": idx(IMAGES),
    "a-images-idx3.gz": gzip.compress(idx(IMAGES)),
    "a.npz": npz(images=IMAGES, labels=LABELS),
    "a.zip": zipped({"a.png": GREY, "b/c.png": GREY}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_truncated_pictures(tmp_path, name):
    content = PICTURES[name]
    cuts = sorted({*range(0, len(content), max(1, len(content) // 60)), len(content) - 1})
    lay(tmp_path, {f"{cut:05}.{name}": content[:cut] for cut in cuts} | {"whole": content})
    read = load(tmp_path, size=8)
    assert len(read) + len(read.skipped) == len(cuts) + 1
    assert all(reason and "\n" not in reason for _, reason in read.skipped)
    assert f"00000.{name}" in dict(read.skipped) and "whole" not in dict(read.skipped)


@pytest.mark.parametrize("name", PICTURES)
def test_corrupt_pictures(tmp_path, name):
    rng = np.random.default_rng(1)
    files = {"whole": PICTURES[name]}
    for i in range(60):
        content = np.frombuffer(PICTURES[name], np.uint8).copy()
        where = rng.integers(0, min(len(content), 200), 1 + i % 4)
        content[where] = rng.integers(0, 256, len(where))
        files[f"{i:02}.{name}"] = content.tobytes()
    read = load(lay(tmp_path, files), size=8)
    assert len(read) + len(read.skipped) == 61


@pytest.mark.parametrize("name", CONTAINERS)
def test_truncated_sets(tmp_path, name):
    content, path = CONTAINERS[name], tmp_path / name
    for cut in sorted({*range(0, len(content), max(1, len(content) // 80)), len(content) - 1}):
        path.write_bytes(content[:cut])
        refusal(path)


@pytest.mark.parametrize("name", CONTAINERS)
def test_corrupt_sets(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("corrupt") / name

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
    @settings(deadline=None, max_examples=150, derandomize=True)
    def check(edits):
        content = bytearray(CONTAINERS[name])
        for where, value in edits:
            content[where % len(content)] = value
        path.write_bytes(content)
        try:
            load(path)
        except DataError as error:
            assert "\n" not in str(error) and name in str(error)

    check()
