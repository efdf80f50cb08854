"""The object's own colours at its edge, where the camera mixed them with the background."""

from __future__ import annotations

import cv2
import numpy as np

EDGE_SIGMA_PX = 0.8  # how soft an edge is taken to be: lens, sensor and codec
RADII_PX = (6, 2)  # from how far colours are gathered, in the first and the second pass


def estimate_foreground(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGB uint8 [h, w, 3] with the background's share taken out at the edge of the object's mask bool [h, w].

    Fast blur fusion (Forte 2021, "Approximate fast foreground colour estimation"), for an opacity that is the mask
    with a soft edge. Pixels well inside the mask stay as they are; outside it the colours mean nothing.
    """
    colours = image.astype(np.float32)
    opacity = soften(mask)[..., None]
    foreground, background = colours, colours
    for radius_px in RADII_PX:
        near = _blur(foreground * opacity, radius_px) / (_blur(opacity, radius_px) + 1e-5)
        background = _blur(background * (1 - opacity), radius_px) / (_blur(1 - opacity, radius_px) + 1e-5)
        foreground = near + opacity * (colours - opacity * near - (1 - opacity) * background)
        foreground = np.clip(foreground, 0, 255)
    return np.where(opacity > 1 - 1e-4, image, np.rint(foreground)).astype(np.uint8)


def cut_along(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGBA uint8 [h, w, 4]: the object of a mask bool [h, w], its colours estimated and its opacity as soft as they
    are taken to be."""
    opacity = np.rint(255.0 * soften(mask)).astype(np.uint8)
    return np.dstack([estimate_foreground(image, mask), opacity])


def soften(mask: np.ndarray) -> np.ndarray:
    """float32 [h, w], 0-1: a mask's opacity as a camera sees its edge."""
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), EDGE_SIGMA_PX, borderType=cv2.BORDER_REPLICATE)


def _blur(values: np.ndarray, radius_px: int) -> np.ndarray:
    """Mean over a square, [h, w, c]."""
    size = (2 * radius_px + 1, 2 * radius_px + 1)
    return cv2.blur(values, size, borderType=cv2.BORDER_REPLICATE).reshape(values.shape)
