"""Objects that touch, told apart: a network is shown a mask and a place in it, and says what belongs to that place.

`imprint_separator.onnx` is ours, made by `demo/train_separator.py`. It sees the picture around the mask, so its answer
does not depend on the network that found the mask; but it knows rendered toys and packages alone, so it is used with
the shipped network and with no other.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from imprint.core.geometry import box_from_mask

if TYPE_CHECKING:
    import onnxruntime as ort

SEPARATOR_PATH = Path(__file__).with_name("imprint_separator.onnx")
SIDE_PX = 80
NUM_PLANES = 6
MARGIN = 0.12  # of the box's longer side, seen around it
NEAR_PX = 3.0  # how far the mark at the place reaches

Place = tuple[int, int]  # y, x


@dataclass(frozen=True)
class Question:
    """What shows the same object as `place`? image: RGB uint8 [h, w, 3]; mask: bool [h, w], true at `place`."""

    image: np.ndarray
    mask: np.ndarray
    place: Place


@dataclass(frozen=True)
class Window:
    """A square of a picture, which may reach over its edges, seen at `SIDE_PX`."""

    y0: int
    x0: int
    side_px: int

    def cut(self, image: np.ndarray, border: int) -> np.ndarray:
        """uint8 [h, w] or [h, w, 3] => the same at [SIDE_PX, SIDE_PX]; border: OpenCV's way to go on outside."""
        (height, width), (y1, x1) = image.shape[:2], (self.y0 + self.side_px, self.x0 + self.side_px)
        inner = image[max(self.y0, 0) : min(y1, height), max(self.x0, 0) : min(x1, width)]
        outside = max(-self.y0, 0), max(y1 - height, 0), max(-self.x0, 0), max(x1 - width, 0)
        whole = cv2.copyMakeBorder(inner, *outside, border)
        mode = cv2.INTER_AREA if self.side_px > SIDE_PX else cv2.INTER_LINEAR
        return cv2.resize(whole, (SIDE_PX, SIDE_PX), interpolation=mode)

    def put_back(self, answer: np.ndarray, image_hw: tuple[int, ...]) -> np.ndarray:
        """float32 [SIDE_PX, SIDE_PX] => [h, w], 0 outside the window."""
        (height, width), (y1, x1) = image_hw, (self.y0 + self.side_px, self.x0 + self.side_px)
        whole = cv2.resize(answer, (self.side_px, self.side_px), interpolation=cv2.INTER_LINEAR)
        y, x = slice(max(self.y0, 0), min(y1, height)), slice(max(self.x0, 0), min(x1, width))
        canvas = np.zeros(image_hw, np.float32)
        canvas[y, x] = whole[y.start - self.y0 : y.stop - self.y0, x.start - self.x0 : x.stop - self.x0]
        return canvas

    def locate(self, place: Place) -> tuple[float, float]:
        """A place of the picture in the window's pixels."""
        scale = SIDE_PX / self.side_px
        return (place[0] + 0.5 - self.y0) * scale - 0.5, (place[1] + 0.5 - self.x0) * scale - 0.5


def find_window(mask: np.ndarray) -> Window:
    """The square around a mask, bool [h, w] and not empty."""
    box = box_from_mask(mask)
    side_px = max(round(max(box.height_px, box.width_px) * (1 + 2 * MARGIN)), 8)
    return Window((box.y0 + box.y1 - side_px) // 2, (box.x0 + box.x1 - side_px) // 2, side_px)


def find_deepest(mask: np.ndarray) -> Place:
    """The pixel of a mask, bool [h, w] and not empty, that is farthest from its edge."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int(y), int(x)


def build_planes(images: np.ndarray, masks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The network's input, float32 [b, 6, s, s]: colours, mask, a mark at the place and how far it is.

    images: uint8 [b, s, s, 3]; masks: uint8 [b, s, s], 255 inside; places: float32 [b, 2], y and x.
    """
    planes = np.empty((len(images), NUM_PLANES, *masks.shape[1:]), np.float32)
    planes[:, :3] = images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    planes[:, 3] = masks / np.float32(255)
    rows, columns = (np.arange(size, dtype=np.float32) for size in masks.shape[1:])
    y, x = places[:, 0, None, None], places[:, 1, None, None]
    square = (rows[None, :, None] - y) ** 2 + (columns[None, None, :] - x) ** 2
    planes[:, 4] = np.exp(-square / (2 * NEAR_PX**2))
    planes[:, 5] = np.sqrt(square) / SIDE_PX
    return planes


@dataclass(frozen=True)
class ObjectSeparator:
    """Answers questions with one network; made by `build_separator`."""

    session: ort.InferenceSession
    batch_size: int

    def answer(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Of each question float32 [h, w]: how likely a pixel of the mask shows the place's object; 0 outside it."""
        answers: list[np.ndarray] = []
        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            windows = [find_window(question.mask) for question in batch]
            pairs = list(zip(batch, windows, strict=True))
            images = np.stack([window.cut(question.image, cv2.BORDER_REPLICATE) for question, window in pairs])
            masks = [question.mask.astype(np.uint8) * 255 for question in batch]
            cut = np.stack([w.cut(mask, cv2.BORDER_CONSTANT) for mask, w in zip(masks, windows, strict=True)])
            places = np.array([window.locate(question.place) for question, window in pairs], np.float32)
            raw = np.asarray(self.session.run(None, {"question": build_planes(images, cut, places)})[0])[:, 0]
            answers += [
                np.where(question.mask, window.put_back(found, question.mask.shape), 0).astype(np.float32)
                for (question, window), found in zip(pairs, raw, strict=True)
            ]
        return answers


def open_separator(batch_size: int, *, threads: int) -> ObjectSeparator:
    """See `imprint.segmentation.build_separator`."""
    return ObjectSeparator(_open_network(threads, os.getpid()), batch_size)


@functools.cache  # one per process, as in `imprint.segmentation.session`
def _open_network(threads: int, _process: int) -> ort.InferenceSession:
    import onnxruntime as ort

    from imprint.segmentation.session import build_options

    return ort.InferenceSession(SEPARATOR_PATH, build_options(threads), providers=["CPUExecutionProvider"])
