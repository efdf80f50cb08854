"""Small H.264 videos of coloured objects before grey backgrounds, and a network that finds colour."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

SIZE_PX = 96
NUM_FRAMES = 36
FPS = 12
Pose = tuple[float, float, float]  # y, x in pixels, turn in radians


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> Path:
    """RGB uint8 frames as H.264, the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "veryfast", "threads": "1"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def draw_frame(seed: int, poses: Sequence[Pose], style: int = 0, radius_px: int = 20, grey: int = 120) -> np.ndarray:
    """Textured grey background by `seed`, and a turning object of one `style` at each pose; stripes, or chequers."""
    noise = np.random.default_rng(seed).normal(0, 25, (SIZE_PX // 4, SIZE_PX // 4)).astype(np.float32)
    wall = grey + cv2.resize(noise, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
    image = np.repeat(np.clip(wall, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    rows, cols = np.mgrid[:SIZE_PX, :SIZE_PX]
    colours = np.roll(np.array([[230, 30, 40], [40, 60, 220], [30, 200, 60]], np.uint8), style, axis=1)
    for y, x, turn in poses:
        along = (rows - y) * np.cos(turn) + (cols - x) * np.sin(turn)
        across = (cols - x) * np.cos(turn) - (rows - y) * np.sin(turn)
        inside = (np.abs(along) <= radius_px) & (np.abs(across) <= 0.7 * radius_px)
        stripe = np.floor(along / (0.4 * radius_px)).astype(int)
        if style < 3:
            pattern = colours[stripe % 3]
        else:
            cells = np.random.default_rng(style).integers(0, 3, (16, 16))
            pattern = colours[cells[stripe % 16, np.floor(across / (0.35 * radius_px)).astype(int) % 16]]
        image[inside] = pattern[inside]
    return image


def draw_turning(seed: int, num_frames: int = NUM_FRAMES) -> list[np.ndarray]:
    """One object that turns and drifts."""
    path = [(46 + 6 * np.sin(k / 7 + seed), 40 + 16 * k / num_frames, seed + k / 8) for k in range(num_frames)]
    return [draw_frame(seed, [pose], style=seed) for pose in path]


def draw_crossing(seed: int, num_frames: int = NUM_FRAMES) -> list[np.ndarray]:
    """Twins that pass through each other in the middle of the clip and part again."""
    shares = [k / (num_frames - 1) for k in range(num_frames)]
    return [draw_frame(seed, [(40, 15 + 66 * s, 0.0), (56, 81 - 66 * s, 0.0)], radius_px=13) for s in shares]


def draw_cut(seed: int, num_frames: int = NUM_FRAMES) -> list[np.ndarray]:
    """Two shots with another object at the same place."""
    half = num_frames // 2
    first = [draw_frame(seed, [(48, 48, k / 8)], style=0, grey=45) for k in range(half)]
    second = [draw_frame(seed + 1, [(48, 48, k / 8)], style=1, grey=215) for k in range(num_frames - half)]
    return first + second


def write_colour_network(path: Path) -> Path:
    """ONNX file, picture [b, 3, 96, 96] => how colourful each pixel is, 0-1: it is right on these clips."""
    axes = _field(5, _field(1, "axes") + _field(8, 1) + _field(20, 7))
    nodes = [
        _field(1, "image") + _field(2, "high") + _field(4, "ReduceMax") + axes,
        _field(1, "image") + _field(2, "low") + _field(4, "ReduceMin") + axes,
        _field(1, "high") + _field(1, "low") + _field(2, "spread") + _field(4, "Sub"),
        _field(1, "spread")
        + _field(2, "score")
        + _field(4, "HardSigmoid")
        + _float("alpha", 0.8)
        + _float("beta", -0.7),
    ]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "colour")
    graph += _field(11, _tensor_type("image", ("b", 3, SIZE_PX, SIZE_PX)))
    graph += _field(12, _tensor_type("score", ("b", 1, SIZE_PX, SIZE_PX)))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(2, 13)))
    return path


def _field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _float(name: str, value: float) -> bytes:
    return _field(5, _field(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _field(20, 1))


def _tensor_type(name: str, shape: tuple[int | str, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


DRAWINGS: dict[str, Callable[[int], list[np.ndarray]]] = {
    **{f"turning_{seed}": draw_turning for seed in range(6)},
    "twins": draw_crossing,
    "cut": draw_cut,
}
