"""Identity as retrieval: which of all test objects does the inserted one look most like?

The feature needs no network and no download: the colours (a Lab histogram), where they sit (a coarse grid), and the
shapes of the edges (histograms of oriented gradients) of the object's crop on black. It survives a moderate change of
view and light; how far is the ceiling, the same retrieval with the true pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from imprint.core.prepare import crop_object

FEATURE = "lab-layout-hog-1"  # part of the protocol: a change of the feature is a new name
_SIZE_PX = 64
_CELLS = 4
_WEIGHTS = {"colour": 1.0, "layout": 0.5, "edges": 0.5}


def compute_descriptor(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Vector of unit parts from RGB uint8 [h, w, 3] and the object's bool (or opacity uint8) mask [h, w]."""
    opacity = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask  # as such: no colours are to be estimated
    rgba = crop_object(image, opacity, _SIZE_PX)
    opacity = rgba[..., 3].astype(np.float32) / 255.0
    lab = cv2.cvtColor(rgba[..., :3].astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    parts = {
        "colour": _compute_colour(lab, opacity),
        "layout": _compute_layout(lab, opacity),
        "edges": _compute_edges(lab, opacity),
    }
    return np.concatenate([np.sqrt(_WEIGHTS[name]) * _normalise(part) for name, part in parts.items()])


def find_nearest(queries: Sequence[np.ndarray], gallery: Sequence[np.ndarray]) -> np.ndarray:
    """Index of the nearest gallery descriptor (Euclidean) for each query."""
    distances = ((np.stack(queries)[:, None] - np.stack(gallery)[None]) ** 2).sum(axis=-1)
    return distances.argmin(axis=1)


def _compute_colour(lab: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Square roots of a joint a-b histogram and a lightness histogram (Hellinger)."""
    chosen = opacity > 0.5
    lightness, a, b = lab[chosen].T
    chroma, _, _ = np.histogram2d(np.clip(a, -79, 79), np.clip(b, -79, 79), bins=10, range=[[-80, 80], [-80, 80]])
    tones, _ = np.histogram(np.clip(lightness, 0, 99), bins=5, range=(0, 100))
    smooth = cv2.GaussianBlur(chroma.astype(np.float32), (3, 3), 0.7, borderType=cv2.BORDER_CONSTANT)
    return np.sqrt(np.concatenate([smooth.ravel(), 0.3 * tones]))


def _compute_layout(lab: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Mean colour and opacity of each cell of a coarse grid."""
    planes = np.dstack([lab / 100.0 * opacity[..., None], opacity])
    return cv2.resize(planes, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).ravel()


def _compute_edges(lab: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    from skimage.feature import hog

    size_px = _SIZE_PX // _CELLS
    grey = lab[..., 0] / 100.0 * opacity
    return hog(grey, orientations=8, pixels_per_cell=(size_px, size_px), cells_per_block=(2, 2))


def _normalise(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
