"""Mask levels, from exact to coarse (paper: shape guidance, four types of mask after SmartBrush; definitions ours).

Masks are `[h, w]` bool arrays here. White (true) marks where the object goes, as in diffusers' inpainting.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

from imprint.core.geometry import Box, box_from_mask

MaskLevel = Literal["exact", "soft", "coarse", "box"]
MASK_LEVELS: tuple[MaskLevel, ...] = get_args(MaskLevel)  # from fine to coarse; the index is the level's number

_BLUR_SHARE = {"soft": 0.05, "coarse": 0.15}  # sigma of the Gaussian / size of the object
_BLUR_THRESHOLD = 0.15  # low, so that the blurred shape grows


def compute_object_size_px(mask: np.ndarray) -> float:
    """Size of an object: the square root of its bounding box's area, in pixels."""
    return float(np.sqrt(box_from_mask(mask).area_px))


def compute_mask_levels(mask: np.ndarray) -> dict[MaskLevel, np.ndarray]:
    """All four levels of an exact object mask [h, w] bool; each holds the finer one.

    `soft` and `coarse` are the mask blurred by 5 % and 15 % of the object's size, cut at a low threshold, largest
    component only; `box` is the bounding box of `coarse`. Raises `ValueError` for an empty mask.
    """
    if not mask.any():
        raise ValueError("mask levels of an empty mask are not defined")
    levels: dict[MaskLevel, np.ndarray] = {"exact": mask.astype(bool)}
    levels["soft"] = levels["exact"] | _blur_and_grow(mask, "soft")
    levels["coarse"] = levels["soft"] | _blur_and_grow(mask, "coarse")
    levels["box"] = fill_box(box_from_mask(levels["coarse"]), mask.shape[:2])
    return levels


def fill_box(box: Box, image_hw: tuple[int, ...]) -> np.ndarray:
    """[h, w] bool, true inside `box`."""
    filled = np.zeros(image_hw[:2], dtype=bool)
    filled[box.slices] = True
    return filled


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected component of `mask` [h, w] bool; empty stays empty."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 1:
        return np.zeros_like(mask, dtype=bool)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def add_contact_margin(hole: np.ndarray, size_px: float, margin_share: float) -> np.ndarray:
    """Hole grown by `margin_share` (0-0.08) of the object's size, twice as far below: room for the contact shadow."""
    radius_px = round(margin_share * size_px)
    if radius_px <= 0:
        return hole.astype(bool)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    grown = cv2.dilate(hole.astype(np.uint8), kernel)
    below = np.zeros_like(grown)
    below[radius_px:] = grown[:-radius_px]
    return hole.astype(bool) | (grown > 0) | (below > 0)


def feather_inside(hole: np.ndarray, width_px: float) -> np.ndarray:
    """[h, w] float32 in [0, 1]: 0 outside the hole, rising to 1 over `width_px` inside it; no edge at the border."""
    if width_px <= 0 or hole.all():
        return hole.astype(np.float32)
    distance_px = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 5)
    return np.clip(distance_px / (width_px + 1.0), 0.0, 1.0).astype(np.float32) * hole


def _blur_and_grow(mask: np.ndarray, level: str) -> np.ndarray:
    sigma_px = _BLUR_SHARE[level] * compute_object_size_px(mask)
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(sigma_px, 0.3), borderType=cv2.BORDER_CONSTANT)
    return largest_component(blurred > _BLUR_THRESHOLD)
