"""Sums of gradients in one launch, of any shapes, on sim with all its checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import assert_as_good_as, values

from minigan.kernels import cuda, reference, sim
from minigan.kernels.reference import ChannelSum
from minigan.kernels.signatures import source_of

try:
    sim.nvrtc.library()
except sim.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

# A row: its size, and for each part None for an array, or (batch, inner) for channels to sum.
parts = st.lists(
    st.one_of(st.none(), st.tuples(st.sampled_from([1, 2, 9, 70]), st.sampled_from([1, 1, 3, 40]))),
    min_size=1,
    max_size=4,
)
rows = st.lists(st.tuples(st.sampled_from([1, 2, 31, 32, 33, 257, 600]), parts), max_size=10)


def draw(rows, seed):
    def part(i, k, n, channels):
        if channels is None:
            return values(seed + 10 * i + k, n)
        batch, inner = channels
        return ChannelSum(values(seed + 10 * i + k, batch, n, inner))

    return [[part(i, k, n, c) for k, c in enumerate(parts)] for i, (n, parts) in enumerate(rows)]


def exact(rows):
    double = [
        [ChannelSum(p.g.astype(float)) if isinstance(p, ChannelSum) else p.astype(float) for p in r]
        for r in rows
    ]
    return reference.totals(double)


@given(rows, st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_totals_of_any_rows(shapes, seed):
    rows = draw(shapes, seed)
    with cuda.launch_log() as log:
        got = cuda.totals(rows) if rows else []
    assert len(log) <= -(-len(rows) // 8)
    for a, plain, right in zip(got, reference.totals(rows), exact(rows), strict=True):
        assert_as_good_as(a, plain, right, "totals", floor=16)


@given(rows, st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_pack_writes_its_rows_and_nothing_between_them(shapes, seed):
    rows = draw(shapes, seed)
    starts = np.cumsum([3, *(row[0].size + 5 for row in rows)]).tolist()
    flat = np.full(starts[-1] + 7, np.float32(-1))
    cuda.pack(rows, starts[:-1], flat)
    for start, row, right in zip(starts, rows, exact(rows), strict=False):
        there = flat[start : start + row[0].size]
        np.testing.assert_allclose(there, right, rtol=1e-4, atol=1e-4)
        there[...] = -1
    assert (flat == -1).all()


def test_gaps_between_totals_are_zeros():
    """An optimizer updates the whole buffer: what lies between must stay what it is, zeros."""
    got = cuda.totals([[values(0, 5), values(1, 5)], [ChannelSum(values(2, 4, 33, 3))]])
    flat = got[0].base
    assert flat.shape == (32 + 64,) and not flat[5:32].any() and not flat[32 + 33 :].any()


def test_what_needs_no_sum_is_not_launched():
    a, b = values(0, 5), values(1, 2, 3)
    with cuda.launch_log() as log:
        got = cuda.totals([[a], [b]])
    assert got[0] is a and got[1] is b and not log


def test_parts_that_differ_in_shape_are_refused():
    with pytest.raises(ValueError, match=r"pack: rows\[0\]\[1\] has shape \(6,\), but \(5,\)"):
        cuda.totals([[values(0, 5), values(1, 6)]])


FILES = ["channels.cu", "elementwise.cu", "flat.cu", "loss.cu", "philox.cu"]


@pytest.mark.parametrize("file", FILES)
def test_nothing_lies_in_local_memory(file):
    """A table that is not taken apart at compile time would: 32 pointers a thread, in pack."""
    assert ".local" not in sim.nvrtc.compile(source_of(file), name=file).code.decode()
