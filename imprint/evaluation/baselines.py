"""The baselines beside the model: the reference pasted by its alpha, as it is and in the scene's colours, and cloned by
Poisson blending.

All get what the model gets, the reference, the plate and the hole, put the object where the model's flow starts from
(`imprint.appearance.placement`), and leave everything outside the hole alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from imprint.core.geometry import Box, box_from_mask, crop_padded
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.pixels import resize_image

if TYPE_CHECKING:
    from torch import Tensor

MATCH_SHARE = 0.25  # of the way from the object's own colours to the scene's; the best of 0, 0.25 .. 1 by object PSNR
_ERODED_PX = 3  # cv2.seamlessClone shrinks its mask by so much
_PAD_PX = 2 * _ERODED_PX  # and wants it away from the picture's border


def paste_object(placed: np.ndarray, plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Alpha paste of a placed object (RGBA uint8, see `place_object`); RGB uint8 like `plate`."""
    alpha = (placed[..., 3] * hole)[..., None].astype(np.float32) / 255.0
    return np.rint(alpha * placed[..., :3] + (1.0 - alpha) * plate).astype(np.uint8)


def match_colours(placed: np.ndarray, plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """RGBA: the placed object with its mean colour in Lab moved MATCH_SHARE of the way to the scene's within the hole's
    box (Reinhard et al. 2001, means alone: with the spreads as well a grey wall would take the object's colours)."""
    box = box_from_mask(hole)
    visible = placed[..., 3] > 127
    if not visible.any():
        return placed
    scene, thing = (
        cv2.cvtColor(np.ascontiguousarray(picture).astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
        for picture in (plate[box.slices], placed[..., :3])
    )
    shift = MATCH_SHARE * (scene.mean(axis=(0, 1)) - thing[visible].mean(axis=0))
    colours = cv2.cvtColor((thing + shift).astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.dstack([np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8), placed[..., 3]])


def clone_object(placed: np.ndarray, plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Poisson blending (Perez et al. 2003, cv2.seamlessClone) of the placed object: its gradients, the plate's rim."""
    visible = (placed[..., 3] > 127) & hole
    if not visible.any():
        return plate.copy()
    pad = ((_PAD_PX, _PAD_PX), (_PAD_PX, _PAD_PX), (0, 0))
    source = np.pad(_extend_colours(placed[..., :3], visible), pad, mode="edge")
    target = np.pad(plate, pad, mode="edge")
    shape = np.pad(visible.astype(np.uint8) * 255, _PAD_PX)
    mask = cv2.dilate(shape, np.ones((3, 3), np.uint8), iterations=_ERODED_PX)
    box = box_from_mask(mask > 0)
    centre = (box.x0 + box.width_px // 2, box.y0 + box.height_px // 2)
    cloned = cv2.seamlessClone(source, target, mask, centre, cv2.NORMAL_CLONE)
    return np.where(hole[..., None], cloned[_PAD_PX:-_PAD_PX, _PAD_PX:-_PAD_PX], plate)


def place_object(reference: np.ndarray, hole: np.ndarray, level: MaskLevel | None) -> np.ndarray:
    """RGBA uint8 [h, w, 4]: the object (RGBA uint8) as large as the hole's box takes it, not cut at the hole's outline;
    in a hole of level `coarse` or `box` a little smaller and standing at the bottom."""
    source = reference[box_from_mask(reference[..., 3] > 127).slices].astype(np.float32)
    target = _find_target(reference, hole, level)
    opacity = source[..., 3:] / 255.0
    scaled = resize_image(np.dstack([source[..., :3] * opacity, opacity]), (target.height_px, target.width_px))
    colours = scaled[..., :3] / np.maximum(scaled[..., 3:], 1e-3)
    pixels = np.rint(np.clip(np.dstack([colours, 255.0 * scaled[..., 3]]), 0, 255)).astype(np.uint8)
    return crop_padded(pixels, Box(-target.y0, -target.x0, hole.shape[0] - target.y0, hole.shape[1] - target.x0))


def _find_target(reference: np.ndarray, hole: np.ndarray, level: MaskLevel | None) -> Box:
    """Where the object's box goes, in whole pixels of the scene."""
    import torch

    from imprint.appearance import compute_placement, find_boxes

    # The rule is for square pictures: both get a square around them, which moves nothing.
    thing, place = (_pad_square(mask) for mask in (reference[..., 3] > 127, hole))
    number = None if level is None else torch.tensor([MASK_LEVELS.index(level)])
    to_reference = compute_placement(thing[None, None].float(), place[None, None], number)[0].double().numpy()
    corners = find_boxes(thing[None])[0].double().numpy().reshape(2, 2)  # left, top; right, bottom
    ends = (corners - to_reference[:, 2]) / np.diag(to_reference[:, :2])
    ends_px = (ends + 1.0) / 2.0 * max(hole.shape)
    size_px = np.maximum(1, np.rint(ends_px[1] - ends_px[0])).astype(int)
    x0, y0 = np.rint(ends_px[0] + (ends_px[1] - ends_px[0] - size_px) / 2).astype(int)
    return Box(int(y0), int(x0), int(y0 + size_px[1]), int(x0 + size_px[0]))


def _pad_square(mask: np.ndarray) -> Tensor:
    import torch

    side_px = max(mask.shape)
    square = np.zeros((side_px, side_px), bool)
    square[: mask.shape[0], : mask.shape[1]] = mask
    return torch.from_numpy(square)


def _extend_colours(colours: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """RGB with the object's colours carried outwards, so that its outline is no edge of the gradient field."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~visible, return_distances=False, return_indices=True)
    assert isinstance(nearest, np.ndarray)
    return colours[nearest[0], nearest[1]]
