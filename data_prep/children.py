"""Child processes for what may hang, crash or be killed: decoders. A child can be ended, and it is asked again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

START_S = 120.0  # what a child may take to start on a busy machine
ENDING_S = 10.0  # and to be gone when it has closed its end
_OF_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what no decoder does to itself
MAX_TRIES = 3  # for what was interrupted


class ReadFailure(Exception):
    """A reader could not go on; the message says why."""


class ReadInterrupted(ReadFailure):
    """It was the machine that kept the reader from going on: too little time or memory, or someone has killed it."""


def receive(receiver: Connection, child: BaseProcess, *, left_s: float, limit_s: float) -> Any:
    """The next message of a child. `ReadFailure` if it is one, or the child has died; `ReadInterrupted` if it was
    killed, or sent none within `left_s` of the `limit_s` seconds that it has."""
    if not receiver.poll(max(left_s, 0.0)):
        raise ReadInterrupted(f"not done within {limit_s:g} s")
    try:
        message = receiver.recv()
    except (EOFError, ConnectionError):
        child.join(ENDING_S)
        if child.exitcode is not None and -child.exitcode in _OF_OTHERS:
            raise ReadInterrupted("the decoder was killed (out of memory?)") from None
        raise ReadFailure("the decoder died") from None
    if isinstance(message, ReadFailure):
        raise message
    return message


class Helper:
    """One child that does one thing after the other, as long as it lives; one that hangs or dies is replaced."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._child: BaseProcess | None = None
        self._connection: Connection | None = None

    def do(self, function: Callable[..., Any], *arguments: object) -> Any:
        """`function(*arguments)`, a module's function, in the child. What was interrupted is tried again; at last it is
        `ReadInterrupted`, and `ReadFailure` if it raised or the child died of it."""
        for left in reversed(range(MAX_TRIES)):
            try:
                return self._try(function, arguments)
            except ReadInterrupted as error:
                if not left:
                    raise ReadInterrupted(f"{error}; tried {MAX_TRIES} times") from None

    def _try(self, function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
        try:
            receiver, child = self._start()
            receiver.send((function, arguments))
            return receive(receiver, child, left_s=self._deadline_s, limit_s=self._deadline_s)
        except (ReadFailure, OSError) as error:
            self.end()
            if isinstance(error, ReadFailure):
                raise
            raise ReadInterrupted("the child was killed") from None

    def _start(self) -> tuple[Connection, BaseProcess]:
        if self._connection is None or self._child is None:
            context = get_process_context()
            self._connection, theirs = context.Pipe()
            self._child = context.Process(target=_help, args=(theirs,), daemon=True)
            self._child.start()
            theirs.close()
            receive(self._connection, self._child, left_s=START_S, limit_s=START_S)
        return self._connection, self._child

    def end(self) -> None:
        """Let the child go; the next thing to do gets a new one."""
        if self._child is not None and self._connection is not None:
            self._child.kill()
            self._child.join()
            self._connection.close()
        self._child = self._connection = None


def _help(requests: Connection) -> None:
    end_with_parent()
    requests.send(None)
    while True:
        try:
            function, arguments = requests.recv()
        except EOFError:
            return
        try:
            requests.send(function(*arguments))
        except MemoryError:
            requests.send(ReadInterrupted("no memory was left"))
        except OSError as error:
            requests.send(ReadInterrupted(f"{error.filename or 'a file'} cannot be read ({error.strerror})"))
        except Exception as error:
            requests.send(ReadFailure(" ".join(str(error).split())[:200] or type(error).__name__))


def get_process_context() -> ForkServerContext:
    """Children come from a single-threaded server that has the slow imports done.

    A plain fork of a process with OpenCV's threads can lock up, and a fresh interpreter per clip would cost more than
    a short clip's decoding.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["cv2", "pyarrow.parquet", "data_prep.tars", "imprint.core.stage"])
    return context


def end_with_parent() -> None:
    """Call it in a child process: it then does not outlive a parent that was killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
