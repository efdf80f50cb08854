"""What sampling at the model's size changes of a picture of another size: its smooth part, inside the hole."""

from __future__ import annotations

import cv2
import numpy as np

from imprint.core.geometry import Box
from imprint.core.masks import feather_inside
from imprint.core.prepare import FEATHER_SHARE

SMOOTH_PX = 1.5  # sigma of the Gaussian, in pixels of the model's size


def add_change(picture: np.ndarray, change: np.ndarray, *, hole: np.ndarray, box: Box) -> np.ndarray:
    """RGB float32 [h, w, 3] with a change [s, s, 3] of the square `box` added in the hole, feathered within it; both in
    grey levels. Fine detail stays the picture's."""
    smooth = cv2.GaussianBlur(change, (0, 0), SMOOTH_PX, borderType=cv2.BORDER_REPLICATE)
    side_px = box.height_px
    enlarged = cv2.resize(smooth, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    height, width = hole.shape
    inside = Box(max(box.y0, 0), max(box.x0, 0), min(box.y1, height), min(box.x1, width))
    enlarged = enlarged[inside.y0 - box.y0 : inside.y1 - box.y0, inside.x0 - box.x0 : inside.x1 - box.x0]
    weight = feather_inside(hole, FEATHER_SHARE * side_px)[inside.slices][..., None]
    result = picture.copy()
    result[inside.slices] += weight * enlarged
    return result
