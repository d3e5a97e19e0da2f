"""Files that are written whole or not at all, and where those are that can be had again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError inside say which file it is about: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path`: whoever reads it, even after a crash, sees all of it or the old.

    Written to a temporary file beside it, flushed to the disk, renamed.   Raises: OSError; the
    temporary file is removed and the old file stands.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on the disk only when the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def cache_folder() -> Path:
    """$MINIGAN_CACHE, else $XDG_CACHE_HOME/minigan, else ~/.cache/minigan."""
    if chosen := os.environ.get("MINIGAN_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minigan"
