"""Every way a set can lie on disk, and every way it can be broken."""

import gzip
import io
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigan.data import DataError, load

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8)
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


GREY = encode(IMAGES[0])

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


# Pictures: each mode against pixel values worked out by hand

RGB = np.array([[[10, 20, 30], [255, 0, 7]]], np.uint8)  # (1,2,3)


def palette():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    return image


def tiff(array):
    return encode(array, "TIFF")


def exif(array, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encode(array, exif=tags)


def uint(*rows):
    return np.array(rows, np.uint8)


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3)
MODES = {
    "grey": (encode(uint([0, 100, 255])), [[[0, 100, 255]]]),
    "1 bit": (encode(np.array([[True, False]])), [[[255, 0]]]),
    "grey+alpha": (
        # 80 · 51/255 + 255 · 204/255 = 220
        encode(np.array([[[80, 255], [80, 0], [80, 51]]], np.uint8)),
        [[[80, 255, 220]]],
    ),
    "grey, one value transparent": (encode(uint([7, 8]), transparency=8), [[[7, 255]]]),
    "16 bits": (encode(np.array([[0, 257, 32768, 65535]], np.uint16)), [[[0, 1, 128, 255]]]),
    "16 bits, low": (encode(np.array([[128, 129, 2570]], np.uint16)), [[[0, 1, 10]]]),
    "16 bits, TIFF": (tiff(np.array([[0, 2570, 65535]], np.uint16)), [[[0, 10, 255]]]),
    "32 bits that fit 16": (tiff(np.array([[0, 2570, 65535]], np.int32)), [[[0, 10, 255]]]),
    "RGB": (encode(RGB), RGB.transpose(2, 0, 1)),
    "RGB, one colour transparent": (
        encode(RGB, transparency=(255, 0, 7)),
        [[[10, 255]], [[20, 255]], [[30, 255]]],
    ),
    "RGBA": (
        encode(np.array([[[10, 20, 30, 255], [255, 0, 7, 0], [100, 0, 255, 51]]], np.uint8)),
        [[[10, 255, 224]], [[20, 255, 204]], [[30, 255, 255]]],
    ),
    "palette": (encode(palette()), [[[10, 40]], [[20, 50]], [[30, 60]]]),
    "palette, transparent": (
        encode(palette(), transparency=1),
        [[[10, 255]], [[20, 255]], [[30, 255]]],
    ),
    "palette, alphas": (
        encode(palette(), transparency=bytes([255, 51])),
        [[[10, 212]], [[20, 214]], [[30, 216]]],
    ),
    "palette, GIF": (encode(palette(), "GIF"), [[[10, 40]], [[20, 50]], [[30, 60]]]),
    "CMYK": (
        tiff(
            Image.fromarray(
                np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [9, 9, 9, 255]]], np.uint8), "CMYK"
            )
        ),
        [[[255, 255, 0]], [[255, 0, 0]], [[255, 0, 0]]],
    ),
    "lying on its right side": (exif(np.rot90(UPRIGHT, 1), 6), UPRIGHT[None]),
    "lying on its left side": (exif(np.rot90(UPRIGHT, -1), 8), UPRIGHT[None]),
    "upside down": (exif(np.rot90(UPRIGHT, 2), 3), UPRIGHT[None]),
    "mirrored": (exif(UPRIGHT[:, ::-1], 2), UPRIGHT[None]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*mode.*parameter is deprecated:DeprecationWarning")
def test_mode(tmp_path, mode):
    content, expected = MODES[mode]
    (tmp_path / "picture").write_bytes(content)
    np.testing.assert_array_equal(load(tmp_path).images[0], expected)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "BMP", "PPM", "TGA"])
def test_formats(tmp_path, format):
    (tmp_path / "picture").write_bytes(
        encode(np.full((16, 16, 3), [200, 100, 50], np.uint8), format)
    )
    flat = np.full((16, 16), 1) * np.array([200, 100, 50])[:, None, None]
    np.testing.assert_allclose(load(tmp_path).images[0].astype(int), flat, atol=3)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 200, 200, 0))
    (tmp_path / "a.jpg").write_bytes(encode(image, "JPEG"))
    np.testing.assert_allclose(load(tmp_path).images[0, :, 8, 8], [255, 55, 55], atol=6)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (4, 4), v) for v in (9, 200)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "a.gif").write_bytes(content)
    assert np.all(load(tmp_path).images == 9)


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


def test_grey_pictures_join_colour_ones(tmp_path):
    lay(tmp_path, {"a.png": encode(uint([7, 9])), "b.png": encode(RGB)})
    images = load(tmp_path).images
    np.testing.assert_array_equal(images[0], [[[7, 9]]] * 3)
    np.testing.assert_array_equal(images[1], RGB.transpose(2, 0, 1))
    assert images.flags.c_contiguous
    assert load(tmp_path, channels=1).shape == (1, 1, 2)


def test_sizes_must_agree_unless_one_is_chosen(tmp_path):
    lay(tmp_path, {"a.png": encode(IMAGES[0]), "b.png": encode(IMAGES[0, :3])})
    said = refusal(tmp_path)
    assert "a.png is 5×4" in said and "b.png is 3×4" in said
    assert load(tmp_path, size=2).images.shape == (2, 1, 2, 2)


@pytest.mark.parametrize("options", [{"size": 0}, {"fit": "squash"}, {"channels": 2}])
def test_unknown_options(options):
    with pytest.raises(DataError, match=next(iter(options))):
        load("mnist-10k", **options)


# Folders and zips


def put_set(root, files, kind):
    """The files as a folder, or as a zip that has one folder around them."""
    if kind == "folder":
        return lay(root / "set", files)
    path = root / "set.zip"
    path.write_bytes(zipped({f"top/{name}": content for name, content in files.items()}))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_subfolders_are_labels(tmp_path, kind):
    files = {
        "10/b.png": encode(uint([100])),
        "2/c.png": encode(uint([20])),
        "2/deeper/a.png": encode(uint([21])),
        "10/a.PNG": encode(uint([101])),
    }
    read = load(put_set(tmp_path, files, kind))
    by_label = {
        (int(label), int(i[0, 0, 0])) for label, i in zip(read.labels, read.images, strict=True)
    }
    assert by_label == {(0, 20), (0, 21), (1, 100), (1, 101)}
    assert (read.classes, read.class_names) == (2, ("2", "10"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("names", [["a.png", "b.png"], ["only/a.png"], ["x/a.png", "b.png"]])
def test_other_folders_are_not(tmp_path, kind, names):
    read = load(put_set(tmp_path, dict.fromkeys(names, GREY), kind))
    assert (read.labels, read.classes, len(read)) == (None, None, len(names))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_order_is_that_of_the_names(tmp_path, kind):
    files = {f"{i:02}.png": encode(uint([i])) for i in RNG.permutation(30)}
    np.testing.assert_array_equal(
        load(put_set(tmp_path, files, kind)).images.ravel(), np.arange(30)
    )


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_bad_files_are_skipped_by_name_and_reason_and_hidden_ones_ignored(tmp_path, kind):
    files = {
        "a.png": GREY,
        "cut.png": GREY[:50],
        "empty.png": b"",
        "float.tif": tiff(np.zeros((4, 4), np.float32)),
        "deep/int.tif": tiff(np.full((4, 4), 70_000, np.int32)),
        "notes.txt": b"hello",
        **dict.fromkeys([".hidden.png", ".ipynb_checkpoints/a.png", "__MACOSX/._a.png"], b"junk"),
        **dict.fromkeys(["Thumbs.db", "x/.DS_Store"], b"junk"),
    }
    read = load(put_set(tmp_path, files, kind))
    assert len(read) == 1
    skipped = {name.removeprefix("top/"): reason for name, reason in read.skipped}
    assert set(skipped) == {"cut.png", "empty.png", "float.tif", "deep/int.tif", "notes.txt"}
    assert skipped["notes.txt"] == "not a picture of a known format"
    assert "range" in skipped["float.tif"] and "range" in skipped["deep/int.tif"]
    assert "truncated" in skipped["cut.png"]
    assert "5 files skipped" in str(read)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_set_with_no_usable_picture(tmp_path, kind):
    assert "no picture in it" in refusal(put_set(tmp_path, {".hidden.png": GREY}, kind))
    said = refusal(put_set(tmp_path, {"a.png": GREY[:30], "b.txt": b"hi"}, kind))
    assert "2 skipped, the first" in said and "a.png" in said


def test_bombs_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # warns above 40, refuses above 80
    monkeypatch.setattr("minigan.data.folders.MAX_MEMBER", 5000)
    files = {
        "good.png": GREY,
        "large.png": encode(np.zeros((6, 10), np.uint8)),
        "giant.png": encode(np.zeros((9, 10), np.uint8)),
        "long.png": GREY + bytes(5000),
    }
    path = put_set(tmp_path, files, "zip")
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the reader must not lean on the caller's filters
        read = load(path)
    assert len(read) == 1
    reasons = {name.removeprefix("top/"): reason for name, reason in read.skipped}
    assert "decompression bomb" in reasons["large.png"] and "bomb" in reasons["giant.png"]
    assert "unzipped" in reasons["long.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_odd_things_in_a_folder(tmp_path):
    lay(tmp_path, {"sub/a.png": GREY})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "line\nbreak.png").write_bytes(b"")
    read = load(tmp_path)
    assert len(read) == 1
    assert dict(read.skipped) == {
        "pipe": "not a regular file",
        "nowhere.png": "No such file or directory",
        "line�break.png": "not a picture of a known format",
    }
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe")


def test_linked_folders_are_followed(tmp_path):
    lay(tmp_path / "elsewhere", {"a.png": GREY})
    lay(tmp_path / "set", {"cats/a.png": GREY})
    (tmp_path / "set" / "dogs").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "set").class_names == ("cats", "dogs")


def test_encrypted_and_broken_zips(tmp_path):
    path = put_set(tmp_path, {"a.png": GREY, "b.png": GREY}, "zip")
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # mark b.png as encrypted
        content[content.rindex(header) + flags] |= 1
    path.write_bytes(content)
    read = load(path)
    assert len(read) == 1 and "password" in read.skipped[0][1]
    for broken in (b"", b"hello", bytes(content[:-10])):
        path.write_bytes(broken)
        assert "not a zip, or truncated" in refusal(path)


# Names


def test_unknown_names(tmp_path):
    assert "did you mean mnist?" in refusal("mnsit")
    assert "known sets are mnist-10k, mnist, fashion-mnist" in refusal(str(tmp_path / "gone"))
    refusal("x" * 5000)
    with pytest.raises(DataError, match="no name given"):
        load("")


# Fuzz: whatever the bytes, a set, a skip or a DataError

PLAIN = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
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
    "exif.png": exif(UPRIGHT, 6),
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
