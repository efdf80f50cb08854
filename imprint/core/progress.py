"""Progress of a long step: a rich bar on a terminal, else one plain line per few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY_S = 5.0
Item = TypeVar("Item")


class Bar:
    """What `show_progress` hands out: call `advance` per finished item, with a short note if there is one."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self._description, self._total, self._done = description, total, done
        self._last_s = 0.0
        self._rich: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._rich = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True)
            )
            self._task = self._rich.add_task(description, total=total, completed=done, note="")
            self._rich.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        if self._rich is not None:
            self._rich.update(self._task, completed=self._done, note=note)
        elif time.monotonic() - self._last_s >= _PLAIN_EVERY_S or self._done >= self._total:
            self._last_s = time.monotonic()
            print(f"{self._description}: {self._done}/{self._total} {note}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()


@contextmanager
def show_progress(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Bar over `total` items of which `done` are finished already (a resumed run)."""
    bar = Bar(description, total, done)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Iterate with progress."""
    with show_progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance()
