"""Which pixels of a frame's foreground are one object: pieces that nearly touch, cut where two objects touch."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

GROUP_SHARE = 0.01  # pieces nearer than about twice this share of the frame's shorter side count as one object
MIN_SEED_SHARE = 0.001  # of the frame: a smaller piece between contacts is no object of its own


def split_foreground(foreground: np.ndarray, contact: np.ndarray) -> Iterator[np.ndarray]:
    """The objects, bool [h, w] each, of the foreground bool [h, w] and the contacts in it bool [h, w].

    Pieces that nearly touch are one object unless a contact lies between them. The contact's own pixels go to the
    object whose inside is nearest.
    """
    radius_px = max(1, round(GROUP_SHARE * min(foreground.shape)))
    kernel = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    for group in _split_components(foreground, kernel, wall=np.zeros_like(contact)):
        inside = group & ~contact
        seeds = _split_components(inside, kernel, wall=contact)
        seeds = [seed for seed in seeds if seed.sum() >= MIN_SEED_SHARE * seed.size]
        if len(seeds) < 2:
            yield group
            continue
        distances = [cv2.distanceTransform((~seed).astype(np.uint8), cv2.DIST_L2, 5) for seed in seeds]
        nearest = np.argmin(distances, axis=0)
        yield from (group & (nearest == number) for number in range(len(seeds)))


def _split_components(mask: np.ndarray, kernel: np.ndarray, *, wall: np.ndarray) -> list[np.ndarray]:
    """Parts of a mask bool [h, w] that stay apart when it grows by the kernel, but not into the wall."""
    grown = (cv2.dilate(mask.astype(np.uint8), kernel) > 0) & ~wall
    count, labels = cv2.connectedComponents(grown.astype(np.uint8), connectivity=8)
    parts = (mask & (labels == label) for label in range(1, count))
    return [part for part in parts if part.any()]
