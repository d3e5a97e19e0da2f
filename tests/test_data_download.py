"""Known sets, from servers on this machine that behave and that do not."""

import gzip
import hashlib
import http.server
import os
import struct
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from minigan.data import DataError, load
from minigan.data.download import KNOWN_SETS, KnownSet, RemoteFile, cache_folder, fetch

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (300, 28, 28), dtype=np.uint8)
LABELS = (np.arange(300) % 10).astype(np.uint8)
CONTENT = {
    "train-images-idx3-ubyte.gz": struct.pack(">4B3I", 0, 0, 8, 3, *IMAGES.shape)
    + IMAGES.tobytes(),
    "train-labels-idx1-ubyte.gz": struct.pack(">4BI", 0, 0, 8, 1, len(LABELS)) + LABELS.tobytes(),
}
NAME, LABELS_NAME = CONTENT
FILES = {name: gzip.compress(content, 9, mtime=0) for name, content in CONTENT.items()}
OTHER_GZIP = {name: gzip.compress(content, 1, mtime=9) for name, content in CONTENT.items()}
HALF = len(FILES[NAME]) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how to behave; the server notes (behaviour, Range)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        _, how, name = self.path.split("/")
        wanted = self.headers["Range"]
        if name == NAME:
            self.server.asked.append((how, wanted))
        content = {
            "wrong": gzip.compress(b"another file"),
            "page": b"<html>log in first</html>",
            "endless": bytes(5_000_000),
            "bomb": gzip.compress(bytes(5_000_000)),
            "other": OTHER_GZIP[name],
        }.get(how, FILES[name])
        if how == "missing":
            self.send_error(404)
            return
        start = 0
        if wanted and how != "norange":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            shown = start + 1 if how == "shifted" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        cut = (how == "cut" and start == 0) or how == "torn"
        self.wfile.write(rest[: len(rest) // 2] if cut else rest)
        self.close_connection = True

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):  # a client that hangs up
        pass


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def known(server, tmp_path, monkeypatch):
    """A function: the behaviours of the mirrors, in order -> a known set of that kind."""
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    server.asked = []

    def make(*behaviours):
        url = f"http://127.0.0.1:{server.server_port}/"
        files = (
            RemoteFile(name, len(content), hashlib.sha256(content).hexdigest())
            for name, content in CONTENT.items()
        )
        mirrors = tuple(f"{url}{how}/" for how in behaviours)
        return KnownSet("digits", "a test", mirrors, tuple(files), tuple("0123456789"))

    return make


def cached(name=NAME):
    return cache_folder() / "digits" / name


@contextmanager
def started(content):
    """A download of which `content` has arrived in an earlier run."""
    part = cached(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    yield
    assert sorted(os.listdir(part.parent)) == [NAME, LABELS_NAME]


def test_a_known_set_is_downloaded_once(server, known, monkeypatch):
    monkeypatch.setitem(KNOWN_SETS, "digits", known("plain"))
    seen = []
    for _ in range(2):
        read = load("digits", progress=lambda *p: seen.append(p))
        np.testing.assert_array_equal(read.images, IMAGES[:, None])
        np.testing.assert_array_equal(read.labels, LABELS)
        assert (read.name, read.source, read.classes) == ("digits", "a test", 10)
    assert server.asked == [("plain", None)]
    images = [p for p in seen if p[0] == NAME]
    assert images[-1] == (NAME, len(FILES[NAME]), len(FILES[NAME]))
    assert [p[1] for p in images] == sorted({p[1] for p in images}) and len(images) > 1


def test_a_cut_connection_is_resumed(server, known):
    fetch(known("cut"))
    assert server.asked == [("cut", None), ("cut", f"bytes={HALF}-")]
    assert cached().read_bytes() == FILES[NAME]


def test_a_download_goes_on_from_an_earlier_run(server, known):
    with started(FILES[NAME][:1000]):
        fetch(known("plain"))
    assert server.asked == [("plain", "bytes=1000-")]
    assert cached().read_bytes() == FILES[NAME]


def test_a_part_that_was_whole_is_taken(server, known):
    with started(FILES[NAME]):
        fetch(known("plain"))
    assert server.asked == [("plain", f"bytes={len(FILES[NAME])}-")]


@pytest.mark.parametrize("start", [b"junk", FILES[NAME] + b"junk", OTHER_GZIP[NAME][:5000]])
def test_a_part_that_does_not_belong_is_dropped(server, known, start):
    with started(start):
        fetch(known("plain"))
    assert server.asked == [("plain", f"bytes={len(start)}-"), ("plain", None)]
    assert cached().read_bytes() == FILES[NAME]


def test_a_server_that_ignores_range(server, known):
    with started(FILES[NAME][:1000]):
        fetch(known("norange"))
    assert server.asked == [("norange", "bytes=1000-")]
    assert cached().read_bytes() == FILES[NAME]


@pytest.mark.parametrize("bad", ["missing", "wrong", "page", "endless", "torn"])
def test_the_next_mirror_is_tried(server, known, bad):
    fetch(known(bad, "other"))
    assert cached().read_bytes() == OTHER_GZIP[NAME]
    assert {how for how, _ in server.asked} == {bad, "other"}


def test_a_server_that_sends_another_range(server, known):
    with started(FILES[NAME][:1000]):
        fetch(known("shifted", "plain"))
    assert server.asked == [("shifted", "bytes=1000-"), ("plain", "bytes=1000-")]


def test_when_every_mirror_fails_each_is_named_with_its_reason(known):
    with pytest.raises(DataError) as caught:
        fetch(known("missing", "wrong", "page", "torn"))
    message = str(caught.value)
    for part in ("digits", NAME, "HTTP 404", "SHA-256", "not the gzip", "was cut", "check the"):
        assert part in message
    assert "\n" not in message
    assert not cached().exists()


def test_too_much_is_not_read_to_its_end(known):
    done = []
    with pytest.raises(DataError, match=r"something else.*more than the \d+ bytes expected"):
        fetch(known("endless", "bomb"), progress=lambda *p: done.append(p[1]))
    assert max(done) < 2_000_000


def test_a_wrong_hash_is_never_kept(known):
    wrong = known("plain")
    images = RemoteFile(NAME, wrong.files[0].size, "0" * 64)
    with pytest.raises(DataError, match="the SHA-256 is wrong"):
        fetch(KnownSet("digits", "a test", wrong.mirrors, (images,), ()))
    assert os.listdir(cached().parent) == []


def test_no_server_at_all(known):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    alone = KnownSet("digits", "a test", (f"http://127.0.0.1:{port}/",), known().files, ())
    with pytest.raises(DataError, match=r"refused.*mnist-10k needs no download"):
        fetch(alone)


def test_a_cache_that_cannot_be_written(known, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write to the cache .*MINIGAN_CACHE"):
        fetch(known("plain"))


def test_a_cached_file_that_went_bad(known, monkeypatch):
    monkeypatch.setitem(KNOWN_SETS, "digits", known("plain"))
    load("digits")
    cached().write_bytes(FILES[NAME][:-20])
    with pytest.raises(DataError, match=r"truncated.*delete .*digits"):
        load("digits")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIGAN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "minigan"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "minigan"
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_known_sets_are_complete():
    for known in KNOWN_SETS.values():
        assert len(known.mirrors) > 1
        assert all(m.startswith("http") and m.endswith("/") for m in known.mirrors)
        assert all(len(bytes.fromhex(f.sha256)) == 32 for f in known.files)
        assert len(known.class_names) == 10
