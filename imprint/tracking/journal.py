"""What a run has logged, in the order of time: an append-only file in its work folder, from which MLflow is fed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Entry = dict[str, Any]  # metrics, a file, a model or the run's status
METRICS_FILE = "metrics.jsonl"


def open_journal(path: Path) -> IO[str]:
    """Open for appending, without the half line that a killed process may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        end = measure_journal(path)
        if end < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(end)
    return path.open("a")


def read_journal(path: Path, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """The whole lines from byte `start` on, each with the byte where it ends."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield json.loads(line), start


def measure_journal(path: Path) -> int:
    """Bytes of the whole lines."""
    data = path.read_bytes() if path.is_file() else b""
    return data.rfind(b"\n") + 1


@contextmanager
def lock_journal(path: Path, *, wait: bool) -> Iterator[bool]:
    """The right to send what the journal holds, for one process at a time. False if another has it (without `wait`)."""
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
