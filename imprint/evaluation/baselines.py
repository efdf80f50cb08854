"""The two baselines beside the model: the reference pasted by its alpha, and cloned by Poisson blending.

Both get what the model gets, the reference, the plate and the hole, and both leave everything outside the hole alone.
"""

from __future__ import annotations

import cv2
import numpy as np

from imprint.core.geometry import Box, box_from_mask
from imprint.core.pixels import resize_image

_ERODED_PX = 3  # cv2.seamlessClone shrinks its mask by so much
_PAD_PX = 2 * _ERODED_PX  # and wants it away from the picture's border


def paste_object(reference: np.ndarray, plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Alpha paste: the object (RGBA uint8) scaled to fit the hole's box, its shape kept; RGB uint8 like `plate`."""
    placed = place_object(reference, hole)
    alpha = placed[..., 3:].astype(np.float32) / 255.0
    return np.rint(alpha * placed[..., :3] + (1.0 - alpha) * plate).astype(np.uint8)


def clone_object(reference: np.ndarray, plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Poisson blending (Perez et al. 2003, cv2.seamlessClone) of the placed object: its gradients, the plate's rim."""
    placed = place_object(reference, hole)
    if not (placed[..., 3] > 127).any():
        return plate.copy()
    pad = ((_PAD_PX, _PAD_PX), (_PAD_PX, _PAD_PX), (0, 0))
    source = np.pad(_extend_colours(placed), pad, mode="edge")
    target = np.pad(plate, pad, mode="edge")
    shape = np.pad((placed[..., 3] > 127).astype(np.uint8) * 255, _PAD_PX)
    mask = cv2.dilate(shape, np.ones((3, 3), np.uint8), iterations=_ERODED_PX)
    box = box_from_mask(mask > 0)
    centre = (box.x0 + box.width_px // 2, box.y0 + box.height_px // 2)
    cloned = cv2.seamlessClone(source, target, mask, centre, cv2.NORMAL_CLONE)
    return np.where(hole[..., None], cloned[_PAD_PX:-_PAD_PX, _PAD_PX:-_PAD_PX], plate)


def place_object(reference: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """RGBA uint8 [h, w, 4]: the object in the middle of the hole's box, as large as fits, cut at the hole's outline."""
    target = box_from_mask(hole)
    source = reference[box_from_mask(reference[..., 3] > 127).slices].astype(np.float32)
    scale = min(target.height_px / source.shape[0], target.width_px / source.shape[1])
    height, width = (max(1, round(scale * side)) for side in source.shape[:2])
    opacity = source[..., 3:] / 255.0
    scaled = resize_image(np.dstack([source[..., :3] * opacity, opacity]), (height, width))
    colours = scaled[..., :3] / np.maximum(scaled[..., 3:], 1e-3)
    y0, x0 = target.y0 + (target.height_px - height) // 2, target.x0 + (target.width_px - width) // 2
    placed = np.zeros((*hole.shape, 4), np.uint8)
    pixels = np.dstack([colours, 255.0 * scaled[..., 3]])
    placed[Box(y0, x0, y0 + height, x0 + width).slices] = np.rint(np.clip(pixels, 0, 255))
    placed[~hole] = 0
    return placed


def _extend_colours(placed: np.ndarray) -> np.ndarray:
    """RGB with the object's colours carried outwards, so that its outline is no edge of the gradient field."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(placed[..., 3] <= 127, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    return placed[..., :3][nearest[0], nearest[1]]
