"""Known sets on the network: mirrors, a cache, resumed downloads, SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from minigan.data.dataset import DataError
from minigan.data.decode import one_line
from minigan.files import cache_folder

Progress = Callable[[str, int, int], None]  # file name, bytes so far, bytes in all (0: unknown)

CHUNK = 1 << 16
TIMEOUT = 30.0  # seconds without a byte
RETRIES = 3  # of one mirror, each going on where the connection was cut


class _Unusable(Exception):
    """Why a mirror's answer cannot be used."""


@dataclass(frozen=True)
class RemoteFile:
    """A gzipped file. size and sha256 are of its content unzipped, as mirrors gzip differently."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class KnownSet:
    """A set that can be downloaded: images first, then labels."""

    name: str
    source: str
    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    class_names: tuple[str, ...]


_TRAIN_IMAGES, _TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"

KNOWN_SETS = {
    known.name: known
    for known in (
        KnownSet(
            "mnist",
            "MNIST, training set; Y. LeCun and C. Cortes; CC BY-SA 3.0",
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
            (
                RemoteFile(
                    _TRAIN_IMAGES,
                    47_040_016,
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                ),
                RemoteFile(
                    _TRAIN_LABELS,
                    60_008,
                    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                ),
            ),
            tuple("0123456789"),
        ),
        KnownSet(
            "fashion-mnist",
            "Fashion-MNIST, training set; Zalando SE; MIT",
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
            (
                RemoteFile(
                    _TRAIN_IMAGES,
                    47_040_016,
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                ),
                RemoteFile(
                    _TRAIN_LABELS,
                    60_008,
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                ),
            ),
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
        ),
    )
}


def fetch(known: KnownSet, progress: Progress | None = None) -> list[Path]:
    """The files of a known set in the cache, after downloading what is missing.

    A download goes to NAME.part and goes on from there when it was cut, in this call or an
    earlier one; it gets its name once its content has the right SHA-256. A mirror that fails is
    followed by the next.

    Raises: DataError if every mirror fails, or the cache cannot be written.
    """
    folder = cache_folder() / known.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch_file(known, file, folder, progress) for file in known.files]
    except OSError as error:  # the network's are caught below: this is the cache
        raise DataError(
            f"{known.name}: cannot write to the cache {folder} ({one_line(error)}): "
            "set MINIGAN_CACHE to a folder that can be written"
        ) from None


def _fetch_file(known: KnownSet, file: RemoteFile, folder: Path, progress: Progress | None) -> Path:
    path = folder / file.name
    if path.exists():
        return path
    part = folder / (file.name + ".part")
    failures = []
    for mirror in known.mirrors:
        try:
            _fetch_from(mirror + file.name, file, part, progress)
        except _Unusable as error:
            failures.append(f"{urlsplit(mirror).netloc}: {error}")
        else:
            os.replace(part, path)
            return path
    raise DataError(
        f"{known.name}: {file.name} could not be downloaded ({'; '.join(failures)}): check the "
        "network, or give a folder that holds the files; the set mnist-10k needs no download"
    )


def _fetch_from(url: str, file: RemoteFile, part: Path, progress: Progress | None) -> None:
    """Complete `part` from one mirror and check it. Raises: _Unusable."""
    resumed = part.exists() and part.stat().st_size > 0
    _download(url, file, part, progress)
    wrong = _content_error(part, file)
    if wrong and resumed:  # perhaps the start came from a mirror with other bytes
        part.unlink()
        _download(url, file, part, progress)
        wrong = _content_error(part, file)
    if wrong:
        part.unlink()
        raise _Unusable(wrong)


def _download(url: str, file: RemoteFile, part: Path, progress: Progress | None) -> None:
    """Request the rest of `part` until it is there. Raises: _Unusable."""
    for _ in range(1 + RETRIES):
        if _request(url, file, part, progress):
            return
    raise _Unusable("the connection was cut")


def _request(url: str, file: RemoteFile, part: Path, progress: Progress | None) -> bool:
    """One request; False if its answer broke off. Raises: _Unusable if there is none to use."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "minigan", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after `start`: the part is whole, or wrong
            return True
        raise _Unusable(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise _Unusable(one_line(reason) if isinstance(reason, OSError) else reason) from None
    except (OSError, http.client.HTTPException) as error:  # it broke off before the headers
        raise _Unusable(one_line(error)) from None
    with response:
        if response.status != 206:
            start = 0  # the server ignored the Range and sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Unusable("the server sent another range than was asked for")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else 0
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            return _copy(response, out, start, total, file, progress)


def _copy(
    response: http.client.HTTPResponse,
    out: IO[bytes],
    done: int,
    total: int,
    file: RemoteFile,
    progress: Progress | None,
) -> bool:
    """Append the answer to `out`; False if it broke off before `total` bytes."""
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException):
            return False
        if not chunk:
            return total in (0, done)
        out.write(chunk)
        done += len(chunk)
        if progress:
            progress(file.name, done, total)
        if done > file.size + (1 << 20):
            raise _Unusable("the server sends something else than the file")


def _content_error(part: Path, file: RemoteFile) -> str | None:
    """What is wrong with a finished download, or None."""
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(part) as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                if size > file.size:
                    return f"more than the {file.size} bytes expected"
    except Exception as error:  # gzip and zlib raise several kinds
        return f"not the gzip file expected ({one_line(error)})"
    return None if digest.hexdigest() == file.sha256 else "the SHA-256 is wrong"
