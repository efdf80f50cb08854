"""SIGTERM and SIGINT: finish the step, save, and end with the signal's exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """signal_number: 0 until a signal came."""

    signal_number: int = 0
    launcher: int | None = field(default_factory=lambda: os.getppid() if "LOCAL_RANK" in os.environ else None)

    def __bool__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number

    def read(self) -> int:
        """The signal so far. The death of the launcher that started this process counts as one."""
        if not self.signal_number and self.launcher not in (None, os.getppid()):
            self.signal_number = signal.SIGTERM
        return self.signal_number


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
