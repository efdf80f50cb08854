"""Edge-aware smoothing of a noisy render, led by noise-free guides (as the a-trous filter of Dammertz et al. 2010)."""

from __future__ import annotations

import numpy as np

KERNEL = (1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16)


def denoise(linear: np.ndarray, guide: np.ndarray, *, sigma_colour: float = 0.16, num_levels: int = 3) -> np.ndarray:
    """Smooth a linear picture (H, W, 3) among pixels of like guide (H, W, G: albedo times 12, normal times 3).

    The filter works on square roots, where noise is about even. A texture's or an object's edge is in the guide and
    stays; a shadow's edge stays as far as it stands out of `sigma_colour` (units of the square root).
    """
    scale = np.sqrt(max(float(np.percentile(linear, 90)), 1e-6))
    root = (np.sqrt(np.maximum(linear, 0)) / scale).astype(np.float32)
    guide = guide.astype(np.float32)
    height, width = root.shape[:2]
    for level in range(num_levels):
        step = 2**level
        pad = ((2 * step, 2 * step), (2 * step, 2 * step), (0, 0))
        wide_root, wide_guide = np.pad(root, pad, mode="edge"), np.pad(guide, pad, mode="edge")
        grey = root.sum(-1) / (3 * sigma_colour / step)
        wide_grey = np.pad(grey, pad[:2], mode="edge")
        total = np.zeros((height, width, 1), np.float32)
        result = np.zeros_like(root)
        for row in range(5):
            for column in range(5):
                window = np.s_[row * step : row * step + height, column * step : column * step + width]
                other = wide_root[window]
                off = wide_guide[window] - guide
                apart = np.einsum("hwc,hwc->hw", off, off) + (wide_grey[window] - grey) ** 2
                weight = (KERNEL[row] * KERNEL[column] * np.exp(-apart))[..., None]
                total += weight
                result += weight * other
        root = result / total
    return (root * scale) ** 2
