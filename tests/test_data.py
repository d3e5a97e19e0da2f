"""Datasets, value range, batches, pictures on disk."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigan.array import Stream
from minigan.data import (
    Batches,
    DataError,
    Dataset,
    check_range,
    grid,
    load,
    save_gif,
    save_png,
    to_float,
    to_uint8,
)

ALL_BYTES = np.arange(256, dtype=np.uint8)
RANGES = st.tuples(st.floats(-10, 10), st.floats(0.1, 100)).map(lambda r: (r[0], r[0] + r[1]))


def numbered(n, **fields):
    """n 1x1 images whose pixel is their number, labels being twice that."""
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    return Dataset(images, 2 * np.arange(n), 2 * n, "numbered", "a test", **fields)


# Value range


@given(RANGES)
def test_bytes_survive_the_round_trip_in_any_range(value_range):
    x = to_float(ALL_BYTES, value_range)
    assert x.dtype == np.float32
    check_range(x, value_range)
    np.testing.assert_array_equal(to_uint8(x, value_range), ALL_BYTES)
    np.testing.assert_array_equal(to_uint8(x.astype(np.float64), value_range), ALL_BYTES)


@given(RANGES)
def test_to_float_is_the_straight_line_from_low_to_high(value_range):
    expected = np.linspace(*value_range, 256)
    scale = np.abs(value_range).max()
    np.testing.assert_allclose(to_float(ALL_BYTES, value_range), expected, atol=4e-7 * scale)


def test_default_range_is_that_of_tanh_with_exact_ends():
    np.testing.assert_array_equal(to_float(ALL_BYTES)[[0, 255]], [-1, 1])


def test_to_uint8_rounds_and_clips_and_never_wraps():
    step = 2 / 255
    x = np.array(
        [-np.inf, -7, -1, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.51 * step, 1, 1.1, 300]
    )
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 0, 1, 254, 255, 255, 255])


def test_to_uint8_leaves_its_argument_alone():
    x = np.linspace(-1, 1, 7, dtype=np.float32)
    before = x.copy()
    to_uint8(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("samples", "said"),
    [(np.array([0.0, np.nan]), "1 of 2 values are NaN"), (ALL_BYTES, "must be floats")],
)
def test_to_uint8_refuses_what_has_no_byte(samples, said):
    with pytest.raises(DataError, match=said):
        to_uint8(samples)


def test_to_float_refuses_what_is_no_byte():
    with pytest.raises(DataError, match="uint8"):
        to_float(np.zeros(3))


@pytest.mark.parametrize("bad", [[-1.1, 0], [0, 255], [0, np.nan]])
def test_check_range_finds_values_outside(bad):
    check_range(np.array([-1.0, 1.0]), (-1, 1))
    with pytest.raises(DataError, match="value_range"):
        check_range(np.array(bad), (-1, 1))


@pytest.mark.parametrize("value_range", [(1, -1), (0, 0), (0, np.inf), (np.nan, 1)])
def test_a_range_must_be_one(value_range):
    with pytest.raises(DataError, match="value_range"):
        numbered(3, value_range=value_range)


# Dataset


def test_dataset_carries_its_range():
    x, _ = Batches(numbered(9, value_range=(0.0, 1.0)), 9, seed=0).batch_at(0)
    np.testing.assert_allclose(np.sort(x.ravel()), np.arange(9) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "classes"),
    [
        (np.zeros((2, 1, 4, 4)), None, None),  # floats
        (np.zeros((2, 4, 4), np.uint8), None, None),  # no channel axis
        (np.zeros((2, 4, 4, 3), np.uint8), None, None),  # channels last
        (np.zeros((0, 1, 4, 4), np.uint8), None, None),  # none
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64), 1),  # too many labels
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2), 1),  # float labels
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1]), 1),  # label = classes
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, -1]), 1),
        (np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 0]), None),  # labels, no classes
    ],
)
def test_dataset_refuses_fields_that_do_not_fit(images, labels, classes):
    with pytest.raises(DataError, match="thing"):
        Dataset(images, labels, classes, "thing", "a test")


def test_embedded_digits():
    digits = load("mnist-10k")
    assert digits.shape == (1, 28, 28) and len(digits) == 10_000
    assert digits.value_range == (-1, 1) and digits.classes == 10
    np.testing.assert_array_equal(np.bincount(digits.labels), np.full(10, 1000))
    corners = digits.images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.mean(corners) < 1 < 60 < digits.images[:, 0, 10:18, 10:18].mean()  # ink is bright
    assert "CC BY-SA 3.0" in digits.source
    assert str(digits) == "mnist-10k: 10000 images 1×28×28, 10 classes"


# Batches


@given(data=st.data(), n=st.integers(1, 40), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_each_epoch_is_a_permutation_and_any_position_can_be_resumed(data, n, seed):
    batch = data.draw(st.integers(1, n))
    batches = Batches(numbered(n), batch, seed)
    steps = 3 * n  # whole epochs: steps · batch images
    run = [batches.indices_at(step) for step in range(steps)]
    assert all(len(indices) == batch for indices in run)
    for epoch, order in enumerate(np.concatenate(run).reshape(-1, n)):
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
        if epoch < 3:
            expected = Stream(seed, "data", step=epoch).permutation(n)
            np.testing.assert_array_equal(order, expected)
    step = data.draw(st.integers(0, steps - 1))
    for b in (batches, Batches(numbered(n), batch, seed)):  # a jump back, and a fresh start
        images, labels = b.batch_at(step)
        np.testing.assert_array_equal(to_uint8(images).ravel(), run[step])
        np.testing.assert_array_equal(labels, 2 * run[step])


def test_batches_differ_by_seed_stream_and_epoch():
    def order(seed=1, stream="data", epoch=0):
        return tuple(Batches(numbered(50), 50, seed, stream).indices_at(epoch))

    assert order() == order()
    assert len({order(), order(seed=2), order(stream="other"), order(epoch=1)}) == 4


def test_batch_layout():
    x, y = Batches(load("mnist-10k"), 64, seed=0).batch_at(156)  # runs across an epoch's end
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 1, 28, 28), np.float32, (64,), np.int64)
    unlabelled = Dataset(np.zeros((2, 3, 4, 4), np.uint8), None, None, "unlabelled", "a test")
    assert Batches(unlabelled, 2, seed=0).batch_at(0)[1] is None


@pytest.mark.parametrize("batch", [0, -1, 4])
def test_impossible_batch(batch):
    with pytest.raises(DataError, match=f"batch.*{batch}"):
        Batches(numbered(3), batch, seed=0)


def test_batch_must_not_change_what_comes_later():
    batches = Batches(numbered(8), 4, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        batches.indices_at(0)[:] = 0
    with pytest.raises(ValueError, match="step"):
        batches.indices_at(-1)


# Pictures


def test_grid_places_images_row_by_row():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 4), np.uint8)
    sheet = grid(images, columns=3, pad=1, fill=9)
    assert sheet.shape == (2 * 3 + 1, 3 * 5 + 1, 3)
    row = [9, 1, 1, 1, 1, 9, 2, 2, 2, 2, 9, 3, 3, 3, 3, 9]
    last = [9, 4, 4, 4, 4, 9, 5, 5, 5, 5, 9, 9, 9, 9, 9, 9]
    expected = [[9] * 16, row, row, [9] * 16, last, last, [9] * 16]
    for c in range(3):
        np.testing.assert_array_equal(sheet[:, :, c], expected)
    assert grid(images[:, :1]).shape == (2 * 4 + 2, 3 * 6 + 2, 1)  # ceil(sqrt(5)) = 3 columns


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((2, 1, 4, 4)), {}),
        (np.zeros((2, 4, 4), np.uint8), {}),
        (np.zeros((0, 1, 4, 4), np.uint8), {}),
        (np.zeros((2, 1, 4, 4), np.uint8), {"columns": 0}),
        (np.zeros((2, 1, 4, 4), np.uint8), {"pad": -1}),
    ],
)
def test_grid_refuses(images, options):
    with pytest.raises(ValueError, match="grid"):
        grid(images, **options)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_png_holds_the_very_pixels(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        np.testing.assert_array_equal(np.asarray(read), image.squeeze())
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8)])
def test_png_refuses(tmp_path, image):
    with pytest.raises(ValueError, match="picture"):
        save_png(image, tmp_path / "a.png")


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(np.zeros((4, 4), np.uint8), path)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_png(np.full((4, 4), 255, np.uint8), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_shows_its_frames_in_order_for_ever(tmp_path, channels):
    frames = [np.full((6, 8, channels), 50 * i, np.uint8) for i in range(4)]
    save_gif(frames, tmp_path / "a.gif", frame_ms=100, last_ms=900)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        for i, duration in enumerate([100, 100, 100, 900]):
            gif.seek(i)
            assert gif.info["duration"] == duration
            np.testing.assert_array_equal(np.asarray(gif.convert("L")), frames[i][:, :, 0])


@pytest.mark.parametrize("frames", [[], [np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)]])
def test_gif_refuses(tmp_path, frames):
    with pytest.raises(ValueError, match="save_gif"):
        save_gif(frames, tmp_path / "a.gif")
