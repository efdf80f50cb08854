"""Two measures of a picture's gradients inside the object, against the truth's. Neither has learned weights.

PSNR alone rewards a blur. Sharpness alone is won by noise and by a swirled print, so the agreement stands beside it.
"""

from __future__ import annotations

import numpy as np

from imprint.core.geometry import box_from_mask

MIN_GRADIENT = 2.0  # of 255: with less, a truth has no gradient that could be compared with
MIN_PIXELS = 64  # with fewer whole pixel neighbourhoods inside the object neither is computed
GRIDS = (4, 8, 16)  # cells along each side of the object's box
NUM_DIRECTIONS = 8
MAX_LOG_SHARPNESS = float(np.log(100.0))  # of a flat picture


def compute_sharpness(image: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float | None:
    """Mean gradient magnitude over the truth's, of uint8 pictures inside `region`; 1 is right, less a blur. None for a
    truth without gradient."""
    inside = _find_inside(region)
    expected = _compute_mean(truth, inside)
    return None if expected is None else float(_measure(image, inside).mean() / expected)


def compute_log_sharpness(sharpness: float | None) -> float | None:
    """How far from 1 on either side: |ln|, so that half and twice are equally wrong; at most MAX_LOG_SHARPNESS."""
    if sharpness is None:
        return None
    return float(abs(np.log(np.clip(sharpness, np.exp(-MAX_LOG_SHARPNESS), np.exp(MAX_LOG_SHARPNESS)))))


def compute_agreement(image: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float | None:
    """0 to 1: how much of all gradient is in both pictures, at the same place and in the same direction.

    Per channel, cell of a grid and direction: the smaller of the two sums of magnitudes over the larger, as sums over
    all of them; the mean over GRIDS, fine to coarse, so that a small shift costs less than a wrong print. Blur lacks
    gradient, noise has too much of it, a swirl has it in other directions.
    """
    inside = _find_inside(region)
    if _compute_mean(truth, inside) is None:
        return None
    weights = [_list_directions(picture, inside) for picture in (image, truth)]
    shares = []
    for size in GRIDS:
        cells = _number_cells(region, inside, size)
        first, second = (_sum_by_cell(weight, cells, size) for weight in weights)
        shares.append(np.minimum(first, second).sum() / np.maximum(first, second).sum())
    return float(np.mean(shares))


def _find_inside(region: np.ndarray) -> np.ndarray:
    """Pixels whose differences to the right and downwards stay in the region: its outline is no gradient of it."""
    inside = np.zeros_like(region)
    inside[:-1, :-1] = region[:-1, :-1] & region[1:, :-1] & region[:-1, 1:]
    return inside


def _compute_differences(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """[2, n, channels] differences downwards and to the right at the n pixels of `inside`."""
    values = picture.astype(np.float32)
    down = np.diff(values, axis=0, append=values[-1:])
    right = np.diff(values, axis=1, append=values[:, -1:])
    return np.stack([down[inside], right[inside]])


def _measure(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return np.hypot(*_compute_differences(picture, inside))


def _compute_mean(truth: np.ndarray, inside: np.ndarray) -> float | None:
    if inside.sum() < MIN_PIXELS:
        return None
    mean = float(_measure(truth, inside).mean())
    return mean if mean >= MIN_GRADIENT else None


def _list_directions(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """[directions, n, channels]: each magnitude shared between the two nearest directions, so that none is an edge."""
    down, right = _compute_differences(picture, inside)
    place = np.arctan2(down, right) / (2 * np.pi) * NUM_DIRECTIONS
    centres = np.arange(NUM_DIRECTIONS)[:, None, None]
    distance = np.abs((place[None] - centres + NUM_DIRECTIONS / 2) % NUM_DIRECTIONS - NUM_DIRECTIONS / 2)
    return np.hypot(down, right) * np.clip(1.0 - distance, 0.0, 1.0)


def _number_cells(region: np.ndarray, inside: np.ndarray, size: int) -> np.ndarray:
    """[n] cell number of each inside pixel in a grid of size x size over the region's box."""
    box = box_from_mask(region)
    rows, columns = np.nonzero(inside)
    down = (rows - box.y0) * size // box.height_px
    right = (columns - box.x0) * size // box.width_px
    return down * size + right


def _sum_by_cell(weights: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """[directions, channels, cells] of [directions, n, channels]."""
    planes = np.moveaxis(weights, 2, 1)
    sums = [np.bincount(cells, plane, size * size) for plane in planes.reshape(-1, len(cells))]
    return np.stack(sums).reshape(*planes.shape[:2], -1)
