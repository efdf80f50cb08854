"""Half-open boxes in pixels of a named image, and the square crops that the model works on."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """Half-open box `[y0, y1) x [x0, x1)` in pixels."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height_px(self) -> int:
        return self.y1 - self.y0

    @property
    def width_px(self) -> int:
        return self.x1 - self.x0

    @property
    def area_px(self) -> int:
        return max(0, self.height_px) * max(0, self.width_px)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index an image `[h, w, ...]` with it; the box must lie inside the image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def box_from_mask(mask: np.ndarray) -> Box:
    """Smallest box around the true pixels of `mask` [h, w] bool; all zeros for an empty mask."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return Box(0, 0, 0, 0)
    return Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)


def compute_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    inter = Box(max(a.y0, b.y0), max(a.x0, b.x0), min(a.y1, b.y1), min(a.x1, b.x1))
    inter_px = inter.area_px if inter.height_px > 0 and inter.width_px > 0 else 0
    union_px = a.area_px + b.area_px - inter_px
    return inter_px / union_px if union_px else 0.0


def compute_border_contact(box: Box, image_hw: tuple[int, ...]) -> float:
    """Share of the box's outline that lies on the frame's border, 0-1."""
    height, width = image_hw
    on_border_px = ((box.y0 == 0) + (box.y1 == height)) * box.width_px + (
        (box.x0 == 0) + (box.x1 == width)
    ) * box.height_px
    return on_border_px / (2 * (box.height_px + box.width_px))


def expand_box(box: Box, margin_px: int, image_hw: tuple[int, int]) -> Box:
    """`box` grown by `margin_px` on each side and clipped to the image."""
    height, width = image_hw
    return Box(
        max(0, box.y0 - margin_px),
        max(0, box.x0 - margin_px),
        min(height, box.y1 + margin_px),
        min(width, box.x1 + margin_px),
    )


def square_around(box: Box, side_px: int) -> Box:
    """Square of `side_px` with the centre of `box`; it may stick out of the image."""
    y0 = (box.y0 + box.y1 - side_px) // 2
    x0 = (box.x0 + box.x1 - side_px) // 2
    return Box(y0, x0, y0 + side_px, x0 + side_px)


def square_crop(box: Box, image_hw: tuple[int, int], context: float, min_side_px: int) -> Box:
    """Square around `box` with `context` times its longer side, moved inside the image.

    The side is at least `min_side_px` and at most the image's shorter side, unless the box itself is longer:
    then the square sticks out of the image (and is padded by the caller), because the hole may not be cut.
    """
    longest_px = max(box.height_px, box.width_px)
    side_px = max(math.ceil(context * longest_px), min_side_px)
    side_px = max(min(side_px, min(image_hw)), longest_px)
    square = square_around(box, side_px)
    y0 = _shift_inside(square.y0, side_px, image_hw[0])
    x0 = _shift_inside(square.x0, side_px, image_hw[1])
    return Box(y0, x0, y0 + side_px, x0 + side_px)


def _shift_inside(start: int, length: int, limit: int) -> int:
    if length >= limit:
        return (limit - length) // 2
    return min(max(start, 0), limit - length)


def crop_padded(image: np.ndarray, box: Box, fill: int = 0, edge: bool = False) -> np.ndarray:
    """Pixels of `image` [h, w, ...] in `box`; outside the image stands `fill`, or the nearest pixel with `edge`."""
    height, width = image.shape[:2]
    rows, cols = np.arange(box.y0, box.y1), np.arange(box.x0, box.x1)
    out = image[np.clip(rows, 0, height - 1)[:, None], np.clip(cols, 0, width - 1)[None, :]]
    if not edge:
        inside = ((rows >= 0) & (rows < height))[:, None] & ((cols >= 0) & (cols < width))[None, :]
        out[~inside] = fill
    return out
