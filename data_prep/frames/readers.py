"""Two video readers, decord and OpenCV, run in a child process with a deadline.

decord is unmaintained: it can hang for ever on some files, leak, and return wrong frames. A child can be killed, and a
frame whose size is not the probed one fails the reader. Where decord has no wheel, OpenCV alone is used.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np

from data_prep.children import (
    START_S,
    ReadFailure,
    ReadInterrupted,
    end_with_parent,
    get_process_context,
    receive,
)

Reader = Callable[[str, Sequence[int]], Iterator[np.ndarray]]


def get_readers() -> tuple[Reader, ...]:
    """The readers of this machine, the preferred one first."""
    has_decord = importlib.util.find_spec("decord") is not None
    return (read_with_decord, read_with_opencv) if has_decord else (read_with_opencv,)


def read_with_decord(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """RGB uint8 [h, w, 3] for each frame number, in order."""
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    video = decord.VideoReader(path, num_threads=1)
    for index in indices:
        yield video[index].asnumpy()


def read_with_opencv(path: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """RGB uint8 [h, w, 3] for each frame number, in order; all are grabbed, since seeking is 20 times slower."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    position = -1
    for index in indices:
        while position < index:
            if not capture.grab():
                raise ReadFailure(f"ends after frame {position}")
            position += 1
        ok, frame = capture.retrieve()
        if not ok:
            raise ReadFailure(f"frame {index} cannot be decoded")
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def read_frames(reader: Reader, path: str, indices: Sequence[int], deadline_s: float) -> Iterator[np.ndarray]:
    """The reader's frames, read in a child process. `ReadFailure` if it fails or dies by its own doing;
    `ReadInterrupted` if it is killed, has no memory, or `deadline_s` passes.

    The deadline is on the whole clip; it starts when the child has started, and runs only while we wait for a frame.
    The child is always gone at the end.
    """
    context = get_process_context()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_frames, args=(reader, path, list(indices), sender), daemon=True)
    child.start()
    sender.close()
    left_s = deadline_s
    try:
        receive(receiver, child, left_s=START_S, limit_s=START_S)
        for _ in indices:
            start_s = time.monotonic()
            frame = receive(receiver, child, left_s=left_s, limit_s=deadline_s)
            left_s -= time.monotonic() - start_s
            yield frame
    finally:
        child.kill()
        child.join()
        receiver.close()


def _send_frames(reader: Reader, path: str, indices: list[int], sender: Connection) -> None:
    end_with_parent()
    try:
        sender.send(None)
        for frame in reader(path, indices):
            sender.send(frame)
    except BrokenPipeError:
        return  # nobody listens any more
    except MemoryError:
        sender.send(ReadInterrupted("no memory was left"))
    except Exception as error:  # decord raises types of its own; the reason travels to the ledger
        sender.send(ReadFailure(" ".join(str(error).split())[:200] or type(error).__name__))
