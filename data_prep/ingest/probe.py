"""What a file says of itself, and whether its first frame can be decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.ingest.layouts.item import Item
from data_prep.positions import compute_positions
from imprint.core.errors import InputError
from imprint.core.pixels import load_image

MAX_FPS = 1000.0  # a container that claims more, or none, has a broken header
CONVERSION = "convert it with `ffmpeg -i FILE -c:v libx264 -crf 18 FILE.mp4`, or replace it if it is damaged"
CODECS = {
    "av01": "AV1",
    "hev1": "HEVC",
    "hvc1": "HEVC",
    "hevc": "HEVC",
    "vvc1": "VVC",
    "apch": "ProRes",
    "apcn": "ProRes",
    "vp09": "VP9",
    "vp90": "VP9",
    "mjpg": "Motion JPEG",
}


@dataclass(frozen=True)
class VideoProbe:
    """Size as decoded (turned upright), frames per second and number of frames."""

    num_frames: int
    fps: float
    height_px: int
    width_px: int


def probe_video(path: Path) -> VideoProbe | str:
    """Probe one file; a string says why it cannot be read."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # the reason goes into the ledger, not to the terminal
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                return "the file is empty"
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)  # `a:b.mp4` alone would be a protocol's name
    try:
        if not capture.isOpened():
            return "no video stream found"
        ok, frame = capture.read()
        if not ok:
            return f"the first frame cannot be decoded{describe_codec(capture.get(cv2.CAP_PROP_FOURCC))}"
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        if not 0.0 < fps <= MAX_FPS:
            return f"the container gives {fps:g} frames per second"
        num_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if num_frames <= 0:  # some containers do not say
            num_frames = 1 + _count_remaining(capture)
        return VideoProbe(num_frames=num_frames, fps=fps, height_px=frame.shape[0], width_px=frame.shape[1])
    finally:
        capture.release()


def describe_codec(fourcc: float) -> str:
    """`; it is av01 (AV1): ...`, with the way out, or nothing where the container does not say."""
    code = int(fourcc).to_bytes(4, "little", signed=False).decode("latin-1") if 0 < fourcc < 2**32 else ""
    if not code.isprintable() or not code.strip("\0 "):
        return ""
    name = CODECS.get(code.lower(), "")
    return f"; its codec is {code.strip()}{f' ({name})' if name else ''}: {CONVERSION}"


def _count_remaining(capture: Any) -> int:
    count = 0
    while capture.grab():
        count += 1
    return count


def probe_item(item: Item) -> VideoProbe | str:
    """Size, rate and length; of pictures the first readable one gives the size. A string says what is wrong."""
    if not item.frames:
        return probe_video(item.folder)
    for name in item.frames:
        size = probe_picture(item.folder / name)
        if size is not None:
            num_frames = compute_positions(item.frames, item.order)[-1] + 1
            return VideoProbe(num_frames=num_frames, fps=item.fps, height_px=size[0], width_px=size[1])
    return "no picture can be read"


def probe_picture(path: Path) -> tuple[int, int] | None:
    """Height and width as decoded, in pixels; None if the file is no readable picture."""
    try:
        image = load_image(path)
    except InputError:
        return None
    return image.shape[0], image.shape[1]
