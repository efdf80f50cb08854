"""Shards read over a URL: the same views as from the folder, and only the bytes that a view has."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from imprint.core.errors import InputError
from imprint.core.records import PairRecord
from imprint.data import ShardReader, View


def assert_same(first: View, second: View) -> None:
    for name in ("object_rgba", "scene", "mask"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """A web server on loopback that knows ranges; gives its URL, and a list of (file, bytes sent) that grows."""
    sent: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            part = data[int(span[1]) : int(span[2]) + 1] if span else data
            sent.append((path.name, len(part)))
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *arguments: object) -> None:
            """Not to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_bucket_gives_the_views_of_the_folder_it_was_copied_from(synthetic_shards: Path) -> None:
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{synthetic_shards}/", "/bucket/shards/", recursive=True)
    try:
        local, remote = ShardReader(synthetic_shards), ShardReader("memory://bucket/shards/")
        assert remote.pairs == local.pairs
        for pair in local.pairs[::7]:
            for mine, other in zip(local.read_pair(pair), remote.read_pair(pair), strict=True):
                assert_same(mine, other)
        bucket.rm("/bucket/shards/train-00000.tar")
        fresh = ShardReader("memory://bucket/shards")
        with pytest.raises(
            InputError, match=r"memory://bucket/shards/train-00000\.tar cannot be read .*copy data/shards"
        ):
            fresh.read_pair(next(pair for pair in fresh.pairs if pair.split == "train"))
    finally:
        bucket.rm("/bucket", recursive=True)


def test_over_http_a_view_is_one_request_for_its_own_bytes(synthetic_shards: Path) -> None:
    local = ShardReader(synthetic_shards)
    with serve(synthetic_shards) as (url, sent):
        remote = ShardReader(url)
        assert sorted(name for name, _ in sent) == ["licences.json", "pairs.parquet", "views.parquet"]
        sent.clear()
        pair = next(pair for pair in local.pairs if pair.kind == "single")
        assert_same(remote.read_pair(pair)[0], local.read_pair(pair)[0])
        row = next(row for row in remote._rows.values() if row.sample_index == pair.reference_index)
        assert [name for name, _ in sent] == [row.shard]
        assert sent[0][1] < 0.2 * (synthetic_shards / row.shard).stat().st_size
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:  # as the loader's workers are made
            other = next(found for found in local.pairs if found.clip_id != pair.clip_id)
            assert_same(pool.submit(read_in_child, remote, other).result(timeout=60), local.read_pair(other)[0])


def read_in_child(reader: ShardReader, pair: PairRecord) -> View:
    return reader.read_pair(pair)[0]


def test_a_url_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nonsense://x/pairs\.parquet cannot be read: .*nonsense"):
        ShardReader("nonsense://x")
    with pytest.raises(InputError, match=r"pairs\.parquet cannot be read .*copy data/shards there"):
        ShardReader(f"file://{tmp_path}")
