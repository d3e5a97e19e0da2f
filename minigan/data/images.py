"""Pictures on disk: grids, PNG, and the GIF of a training's progress."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from minigan.files import write_atomic


def grid(images: np.ndarray, columns: int | None = None, pad: int = 2, fill: int = 0) -> np.ndarray:
    """Lay images out in rows, `pad` pixels of the grey `fill` around each.

    uint8 (N,C,H,W), C = 1 or 3 -> uint8 (height, width, C), filled row by row; columns is
    ceil(sqrt(N)) if not given. Floats come here through to_uint8.

    Raises: ValueError on anything else than such images.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"grid: images must be uint8 (N,C,H,W), not {images.dtype} {images.shape}: "
            "convert samples with to_uint8"
        )
    n, c, h, w = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    if columns < 1 or pad < 0:
        raise ValueError(f"grid: columns must be at least 1 and pad 0, not {columns} and {pad}")
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), fill, np.uint8)
    for i, image in enumerate(images):
        y = pad + (i // columns) * (h + pad)
        x = pad + (i % columns) * (w + pad)
        sheet[y : y + h, x : x + w] = image.transpose(1, 2, 0)  # (C,H,W) -> (H,W,C)
    return sheet


def _picture(image: np.ndarray) -> Image.Image:
    """uint8 (H,W), (H,W,1) or (H,W,3) as a Pillow image."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    is_picture = image.ndim == 2 or image.shape[2:] == (3,)
    if image.dtype != np.uint8 or not is_picture:
        raise ValueError(
            f"a picture must be uint8 (H,W), (H,W,1) or (H,W,3), not {image.dtype} {image.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def save_png(image: np.ndarray, path: str | Path) -> None:
    """Write uint8 (H,W), (H,W,1) or (H,W,3) as a PNG, whole or not at all.

    Raises: ValueError on another shape or dtype; OSError if the file cannot be written.
    """
    content = io.BytesIO()
    _picture(image).save(content, "PNG", optimize=True)
    write_atomic(Path(path), content.getvalue())


def save_gif(
    frames: Sequence[np.ndarray], path: str | Path, frame_ms: int = 150, last_ms: int = 1500
) -> None:
    """Write pictures of one size as an endless GIF that rests last_ms on the last frame.

    Raises: ValueError if there is no frame or their shapes differ; OSError as save_png.
    """
    if not frames or len({f.shape for f in frames}) != 1:
        raise ValueError(
            "save_gif: frames must be one or more pictures of one shape, not "
            f"{sorted({f.shape for f in frames})}"
        )
    first, *rest = [_picture(f) for f in frames]
    content = io.BytesIO()
    first.save(
        content,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=[frame_ms] * len(rest) + [last_ms],
        loop=0,
    )
    write_atomic(Path(path), content.getvalue())
