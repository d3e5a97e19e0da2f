"""Sets stored as arrays, the options of load, and names: read right, or refused in one line."""

import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest
from data_files import (
    GREY,
    IMAGES,
    LABELS,
    encode,
    idx,
    lay,
    npz,
    refusal,
    uint,
    zipped,
)

from minigan.data import DataError, load

# IDX


@pytest.mark.parametrize("zip_images", [False, True])
@pytest.mark.parametrize("zip_labels", [False, True, None])
@pytest.mark.parametrize("sep", "-.")
@pytest.mark.parametrize("as_folder", [False, True])
def test_idx(tmp_path, zip_images, zip_labels, sep, as_folder):
    def put(name, array, zipped):
        path = tmp_path / (name + ".gz" * zipped)
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
        return path

    path = put(f"train-images{sep}idx3-ubyte", IMAGES, zip_images)
    if zip_labels is not None:
        put(f"train-labels{sep}idx1-ubyte", LABELS, zip_labels)
    read = load(tmp_path if as_folder else path)
    np.testing.assert_array_equal(read.images, IMAGES[:, None])
    if zip_labels is None:
        assert read.labels is None and read.classes is None
    else:
        np.testing.assert_array_equal(read.labels, LABELS)
        assert read.classes == 3


def test_idx_folder_prefers_the_training_set(tmp_path):
    files = {"train-images-idx3-ubyte": idx(IMAGES), "t10k-images-idx3-ubyte": idx(IMAGES[:2])}
    assert len(load(lay(tmp_path, files))) == 12
    (tmp_path / "train-images-idx3-ubyte").unlink()
    assert len(load(tmp_path)) == 2


BROKEN_IDX = {
    "empty": (b"", "empty"),
    "cut header": (idx(IMAGES)[:9], "truncated"),
    "cut body": (idx(IMAGES)[:-1], "announces 240 bytes.*holds 239"),
    "too long": (idx(IMAGES) + b"!", "holds more"),
    "picture": (GREY, "not an IDX file"),
    "one byte": (b"\0", "not an IDX file"),
    "int32": (idx(IMAGES.astype(">i4"), kind=12), "unsigned bytes"),
    "labels": (idx(LABELS), "give the images file"),
    "no image": (idx(IMAGES[:0]), "no values"),
    "giant": (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3) + b"x", "holds 1:"),
    "cut gzip": (gzip.compress(idx(IMAGES))[:-12], "truncated"),
    "corrupt gzip": (gzip.compress(idx(IMAGES))[:-6] + b"abcdef", "download it again"),
    "gzip of nothing": (gzip.compress(b""), "empty"),
    "gzip magic only": (b"\x1f\x8b", "truncated"),
}


@pytest.mark.parametrize("kind", BROKEN_IDX)
def test_broken_idx(tmp_path, kind):
    content, said = BROKEN_IDX[kind]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load(path)
    refusal(path)


def test_idx_labels_that_do_not_belong(tmp_path):
    lay(tmp_path, {"images-idx3": idx(IMAGES), "labels-idx1": idx(LABELS[:-1])})
    with pytest.raises(DataError, match=r"labels-idx1: 11 labels for 12 images"):
        load(tmp_path / "images-idx3")
    (tmp_path / "labels-idx1").write_bytes(b"")
    with pytest.raises(DataError, match=r"labels-idx1: the file is empty"):
        load(tmp_path / "images-idx3")


# .npz


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (IMAGES, IMAGES[:, None]),
        (IMAGES[:, None], IMAGES[:, None]),
        (IMAGES[..., None], IMAGES[:, None]),
        (np.stack([IMAGES] * 3, 1), np.stack([IMAGES] * 3, 1)),
        (np.stack([IMAGES, ~IMAGES, IMAGES], -1), np.stack([IMAGES, ~IMAGES, IMAGES], 1)),
    ],
)
def test_npz_layouts(tmp_path, stored, expected):
    path = tmp_path / "set.npz"
    path.write_bytes(npz(images=stored, labels=LABELS.astype(np.int32), other=np.ones(3)))
    read = load(path)
    np.testing.assert_array_equal(read.images, expected)
    np.testing.assert_array_equal(read.labels, LABELS)
    assert read.images.flags.c_contiguous and read.labels.dtype == np.int64
    assert (read.classes, read.name) == (3, "set.npz")
    path.write_bytes(npz(images=stored))
    assert load(path).labels is None


class Bomb:
    """Unpickling one makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def array_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


BROKEN_NPZ = {
    "empty": (b"", "not an .npz, or truncated"),
    "text": (b"hello", "not an .npz"),
    "cut": (npz(images=IMAGES)[:-30], "truncated or corrupt"),
    "one array": (array_file(IMAGES), "not an .npz"),
    "a pickle": (pickle.dumps({"images": IMAGES}), "not an .npz"),
    "no arrays in it": (zipped({"images": GREY}), "images is no array"),
    "nothing in it": (npz(), "only nothing"),
    "no images": (npz(x=IMAGES, y=LABELS), "only x, y: save it"),
    "floats": (npz(images=IMAGES / 255), "float64, not uint8"),
    "bools": (npz(images=IMAGES > 9), "bool, not uint8"),
    "objects": (npz(images=np.array([None, 1])), "pickled"),
    "one image": (npz(images=IMAGES[0]), r"shape \(5, 4\)"),
    "four channels": (npz(images=np.zeros((2, 9, 9, 4), np.uint8)), "C = 1 or 3"),
    "either layout": (npz(images=np.zeros((2, 3, 9, 3), np.uint8)), "C = 1 or 3"),
    "none": (npz(images=IMAGES[:0]), "no image"),
    "zeros and ones": (npz(images=IMAGES // 128), "multiply them by 255"),
    "object labels": (npz(images=IMAGES, labels=LABELS.astype(object)), "pickled"),
    "float labels": (npz(images=IMAGES, labels=LABELS / 2), "labels are float64"),
    "one-hot labels": (npz(images=IMAGES, labels=np.eye(12, dtype=int)), r"\(12, 12\)"),
    "few labels": (npz(images=IMAGES, labels=LABELS[:-1]), r"labels must be int64 \(12,\)"),
    "no labels": (npz(images=IMAGES, labels=LABELS[:0]), r"labels must be int64 \(12,\)"),
    "negative labels": (npz(images=IMAGES, labels=LABELS.astype(int) - 1), "span -1 .. 1"),
    "giant labels": (npz(images=IMAGES, labels=LABELS.astype(np.uint64) << 62), "span 0 .."),
}


@pytest.mark.parametrize("kind", BROKEN_NPZ)
def test_broken_npz(tmp_path, kind):
    content, said = BROKEN_NPZ[kind]
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load(path)
    assert "set.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    path, trace = tmp_path / "set.npz", tmp_path / "ran"
    path.write_bytes(npz(images=np.array([Bomb(trace)], dtype=object)))
    refusal(path)
    assert not trace.exists()
    np.load(path, allow_pickle=True)["images"]
    assert trace.exists()  # so the bomb was live


# Size, fit, channels

WIDE = np.repeat(uint([0, 0, 90, 90, 90, 90, 255, 255]), 4, axis=0)  # (4,8)


@pytest.mark.parametrize("kind", ["folder", "npz", "idx"])
@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("crop", np.full((4, 4), 90)),  # the middle
        ("stretch", None),
        ("pad", None),
    ],
)
def test_fit(tmp_path, kind, fit, expected):
    path = tmp_path / f"set.{kind}"
    if kind == "folder":
        lay(path, {"a.png": encode(WIDE)})
    else:
        path.write_bytes(npz(images=WIDE[None]) if kind == "npz" else idx(WIDE[None]))
    if fit == "pad":
        image = load(path, size=8, fit=fit).images[0, 0]
        np.testing.assert_array_equal(image[2:6], WIDE)
        assert np.all(image[[0, 1, 6, 7]] == 255)
    else:
        image = load(path, size=4, fit=fit).images[0, 0]
        assert image.shape == (4, 4)
        if fit == "crop":
            np.testing.assert_array_equal(image, expected)
        else:  # each output column is a mean about two columns of WIDE
            assert np.all(np.diff(image[0].astype(int)) >= 0) and np.ptp(image) > 200


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_channels(tmp_path, kind):
    colour = np.full((6, 6, 3), [200, 100, 50], np.uint8)
    path = tmp_path / f"set.{kind}"
    if kind == "folder":
        lay(path, {"a.png": encode(colour)})
    else:
        path.write_bytes(npz(images=colour[None]))
    assert load(path).shape == load(path, channels=3).shape == (3, 6, 6)
    grey = load(path, channels=1).images
    assert grey.shape == (1, 1, 6, 6)
    np.testing.assert_allclose(grey, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=0.51)
    np.testing.assert_array_equal(
        load("mnist-10k", channels=3).images[5], np.repeat(load("mnist-10k").images[5], 3, 0)
    )


def test_sizes_must_agree_unless_one_is_chosen(tmp_path):
    lay(tmp_path, {"a.png": encode(IMAGES[0]), "b.png": encode(IMAGES[0, :3])})
    said = refusal(tmp_path)
    assert "a.png is 5×4" in said and "b.png is 3×4" in said
    assert load(tmp_path, size=2).images.shape == (2, 1, 2, 2)


@pytest.mark.parametrize("options", [{"size": 0}, {"fit": "squash"}, {"channels": 2}])
def test_unknown_options(options):
    with pytest.raises(DataError, match=next(iter(options))):
        load("mnist-10k", **options)


# Names


def test_unknown_names(tmp_path):
    assert "did you mean mnist?" in refusal("mnsit")
    assert "known sets are mnist-10k, mnist, fashion-mnist" in refusal(str(tmp_path / "gone"))
    refusal("x" * 5000)
    with pytest.raises(DataError, match="no name given"):
        load("")
