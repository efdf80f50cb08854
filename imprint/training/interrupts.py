"""SIGTERM and SIGINT: finish the step, save, and end with the signal's exit code."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """signal_number: 0 until a signal came."""

    signal_number: int = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Within it a signal only sets the request; a second one acts as it would have without us."""
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def remember(number: int, _frame: object) -> None:
        request.signal_number = number
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()
