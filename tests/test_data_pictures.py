"""Folders and zips of pictures: each mode, labels, bad files."""

import os
import warnings

import numpy as np
import pytest
from data_files import GREY, encode, exif, lay, refusal, tiff, uint, zipped
from PIL import Image

from minigan.data import load

# Pictures: each mode against pixel values worked out by hand

RGB = np.array([[[10, 20, 30], [255, 0, 7]]], np.uint8)  # (1,2,3)


def palette():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    return image


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


def test_grey_pictures_join_colour_ones(tmp_path):
    lay(tmp_path, {"a.png": encode(uint([7, 9])), "b.png": encode(RGB)})
    images = load(tmp_path).images
    np.testing.assert_array_equal(images[0], [[[7, 9]]] * 3)
    np.testing.assert_array_equal(images[1], RGB.transpose(2, 0, 1))
    assert images.flags.c_contiguous
    assert load(tmp_path, channels=1).shape == (1, 1, 2)


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
    files = {f"{i:02}.png": encode(uint([i])) for i in np.random.default_rng(2).permutation(30)}
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
