"""The sizes of a convolution on a CPU: which loops compute it, and in what pieces."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from minigan.kernels import layout, loading, sharing
from minigan.kernels.reference import Pads, Pair, conv_out_size

WINOGRAD_TILES = 128  # in a batch, that transforming the filters be worth it
PIECE_ROWS = 256  # of patches at a time: what they and the filters take fits the second cache


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution, and how the work on it is cut.

    A training asks for the same ones again and again: use `geometry`, which keeps them.
    """

    n: int
    size: Pair
    channels: int
    taps: Pair
    stride: Pair
    pad: Pads
    dilation: Pair
    filters: int

    @cached_property
    def out(self) -> Pair:
        return conv_out_size(self.size, self.taps, self.stride, self.pad, self.dilation)

    @cached_property
    def depth(self) -> int:
        """R·S·C: the length of a patch."""
        return self.taps[0] * self.taps[1] * self.channels

    @cached_property
    def pixels(self) -> int:
        """P·Q: the patches that an image has."""
        return prod(self.out)

    @cached_property
    def direct(self) -> bool:
        """Whether patches do not overlap, and are x in its order: of one pixel, or the image."""
        if any(map(any, self.pad)) or self.dilation != (1, 1):
            return False
        return self.taps == self.size or (self.taps == (1, 1) and self.stride == (1, 1))

    @cached_property
    def work(self) -> int:
        return self.n * self.pixels * self.depth * (1 + self.filters // sharing.PRODUCTS)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """As the loops take them."""
        (top, _), (left, _) = self.pad
        return (*self.size, self.channels, *self.out, *self.taps, *self.stride, top, left,
                *self.dilation)  # fmt: skip

    def piece(self, pixels: int) -> int:
        """How many images of so many pixels to take at a time."""
        return max(1, min(self.n, -(-PIECE_ROWS // max(1, pixels))))

    def _how(self, whole_vectors: bool) -> int:
        run = self.taps[1] * self.channels
        if self.dilation[1] != 1 or run < loading.gemm.LANES:
            return int(loading.convolution.LAID_OUT)
        if any(map(any, self.pad)) or (whole_vectors and run % loading.gemm.LANES):
            return int(loading.convolution.PADDED)
        return int(loading.convolution.IN_PLACE)

    def _area(self, how: int) -> int:
        """Floats of space that the patches of an image take."""
        if how == loading.convolution.IN_PLACE:
            return 0
        sizes = zip(
            self.size, self.pad, self.out, self.stride, self.dilation, self.taps, strict=True
        )
        padded = self.channels * prod(
            max(h + pad[0], (p - 1) * stride + dilation * (taps - 1) + 1)
            for h, pad, p, stride, dilation, taps in sizes
        )
        return padded + (self.pixels * self.depth if how == loading.convolution.LAID_OUT else 0)

    @cached_property
    def patches(self) -> tuple[int, int]:
        """Where conv2d reads patches, and the floats of space that an image's take."""
        how = self._how(whole_vectors=False)
        return how, self._area(how)

    @cached_property
    def whole_patches(self) -> tuple[int, int]:
        """The same for conv2d_wgrad, which reads a run's last vector whole."""
        how = self._how(whole_vectors=True)
        return how, self._area(how)

    @cached_property
    def framed(self) -> int:
        """Floats of an image of g with what conv2d_dgrad's phases read around it."""
        sizes = zip(self.size, self.pad, self.out, self.stride, self.taps, strict=True)
        return self.filters * prod(
            -(-taps // stride) - 1 + max(p, (h - 1 + pad[0]) // stride + 1)
            for h, pad, p, stride, taps in sizes
        )

    @cached_property
    def phases(self) -> bool:
        """Whether conv2d_dgrad is faster phase by phase than by col2im, by the number of products,
        and eight for each number that col2im adds."""
        if self.dilation != (1, 1):
            return False
        taps = prod(-(-t // s) for t, s in zip(self.taps, self.stride, strict=True))
        by_phases = prod(self.size) * taps * self.filters * layout.whole(self.channels)
        by_columns = self.pixels * (self.filters * layout.whole(self.depth) + 8 * self.depth)
        return by_phases < by_columns

    @cached_property
    def winograd(self) -> bool:
        """Whether Winograd's filtering applies (whole vectors of channels, two outputs of a parity
        and axis at least) and is faster: see winograd.py."""
        shape = self.taps, self.stride, self.dilation
        whole = self.channels % loading.gemm.LANES == self.filters % loading.gemm.LANES == 0
        large = min(self.size) >= 4 and min(self.out) >= 2
        enough = self.n * prod(-(-p // 3) for p in self.out) >= WINOGRAD_TILES
        fit = whole and large and enough and loading.winograd.EXACT_ENOUGH
        return shape == ((4, 4), (2, 2), (1, 1)) and fit


geometry = lru_cache(1024)(Geometry)
