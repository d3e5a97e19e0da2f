"""One picture file to grey or RGB bytes, whatever its mode."""

from __future__ import annotations

from typing import IO

import numpy as np
from PIL import Image, ImageOps

from minigan.data.dataset import DataError

FITS = ("crop", "pad", "stretch")

# Formats of pixels only. Pillow knows more, and opens some of them by running other programs.
FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "TGA"),
    *("JPEG2000", "AVIF"),
)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_picture(file: IO[bytes]) -> Image.Image:
    """The first frame of a picture file, upright, as Pillow mode L or RGB.

    EXIF's orientation is applied, alpha is composited on white, 16-bit grey is scaled to 8 bits:
    round(v/257).

    Raises: whatever Pillow does on a file that it cannot read, and DataError on pixels that have
    no fixed range. The caller turns Image.DecompressionBombWarning into an error.
    """
    Image.init()
    opened = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise DataError("floating-point pixels, whose range is not known: save as 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError("32-bit pixels, whose range is not known: save as 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def fit_picture(image: Image.Image, size: int | None, fit: str, channels: int | None) -> np.ndarray:
    """Mode L or RGB -> uint8 (C, size, size), or (C,H,W) as it is where size is None.

    fit "crop" keeps the aspect and cuts the longer side about its centre, "pad" keeps the aspect
    and fills with white, "stretch" does neither. Resampling is Lanczos with antialiasing; colour
    becomes grey by ITU-R 601 luma.
    """
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        square, lanczos = (size, size), Image.Resampling.LANCZOS
        if fit == "crop":
            image = ImageOps.fit(image, square, lanczos)
        elif fit == "pad":
            image = ImageOps.pad(image, square, lanczos, color="white")
        else:
            image = image.resize(square, lanczos)
    a = np.asarray(image)
    return a[None] if a.ndim == 2 else a.transpose(2, 0, 1)  # (H,W,C) -> (C,H,W)


def fit_images(images: np.ndarray, size: int | None, fit: str, channels: int | None) -> np.ndarray:
    """fit_picture on each of uint8 (N,C,H,W). No copy where there is nothing to change."""
    _, c, h, w = images.shape
    if channels in (None, c) and size in (None, h) and size in (None, w):
        return images
    pictures = (Image.fromarray(i[0] if c == 1 else i.transpose(1, 2, 0).copy()) for i in images)
    fitted = np.stack([fit_picture(p, size, fit, channels) for p in pictures])
    return np.ascontiguousarray(fitted)


def check_options(size: int | None, fit: str, channels: int | None) -> None:
    """Raises: DataError on an option that fit_picture does not know."""
    if size is not None and size < 1:
        raise DataError(f"size must be at least 1 pixel, not {size}")
    if fit not in FITS:
        raise DataError(f"fit must be one of {', '.join(FITS)}, not {fit!r}")
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), not {channels}")
