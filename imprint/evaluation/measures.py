"""What is measured on one composite against its ground truth, and where.

A change of any definition here is a new `METRICS_VERSION`: numbers of different versions never meet (see protocol.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.view_changes import NEAR
from imprint.evaluation.cases import Case
from imprint.evaluation.composites import Made
from imprint.evaluation.gradients import compute_agreement, compute_log_sharpness, compute_sharpness
from imprint.evaluation.trials import Trial

METRICS_VERSION = 2
REGIONS = ("object", "shadow", "surround")
MIN_REGION_PX = 16  # a smaller region is "not applicable"
MAX_PSNR_DB = 60.0  # where two pictures are (nearly) equal
CHANGED_LEVELS = 16  # a pixel counts as changed where a channel differs by more, of 255
FLAT_LEVELS = 4  # a hole is flat where the middle 80 % of every channel differ by less, of 255

Values = dict[str, float | None]


def compute_regions(case: Case, level: MaskLevel) -> dict[str, np.ndarray]:
    """Where the numbers are taken, all inside the hole: the object, its shadow, and all of the hole but the object."""
    hole = case.holes[level]
    return {
        "object": hole & case.object_mask,
        "shadow": hole & case.shadow_mask,
        "surround": hole & ~case.object_mask,
    }


def compute_psnr_db(image: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over the true pixels of `region`, of uint8 pictures, at most MAX_PSNR_DB."""
    difference = image[region].astype(np.float64) - truth[region].astype(np.float64)
    mean_square = max(float(np.mean(difference**2)), 255.0**2 / 10 ** (MAX_PSNR_DB / 10))
    return float(10 * np.log10(255.0**2 / mean_square))


def compute_ssim_map(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[h, w] structural similarity per pixel (Wang et al. 2004: Gaussian window, sigma 1.5), mean of the channels."""
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return structural_similarity(truth, image, channel_axis=-1, full=True, **options)[1].mean(axis=-1)


def compute_outline_iou(opacity: np.ndarray | None, mask: np.ndarray) -> float | None:
    """Intersection over union of the object's true mask with where the method put the object (opacity uint8 above a
    half, not cut at the hole: else a hole that is the outline would be all that is needed). None without an opacity."""
    if opacity is None:
        return None
    found = opacity > 127
    return float((found & mask).sum() / (found | mask).sum())


def compute_copy_distance(image: np.ndarray, pasted: Made, trial: Trial) -> float | None:
    """Mean absolute difference, of 255, from the plainly pasted reference, over what either shows as the object. 0 is a
    copy: it has the reference's identity, whatever the scene asks for."""
    assert pasted.opacity is not None
    region = trial.hole & (trial.case.object_mask | (pasted.opacity > 127))
    if region.sum() < MIN_REGION_PX:
        return None
    return float(np.abs(image[region].astype(np.float64) - pasted.picture[region]).mean())


def measure_composite(made: Made, trial: Trial, pasted: Made) -> Values:
    """All numbers of one composite but its identity; None where a region has fewer than MIN_REGION_PX pixels, or where
    something is not defined. `pasted`: the alpha paste of the same trial."""
    image, case = made.picture, trial.case
    regions = compute_regions(case, trial.level)
    ssim = compute_ssim_map(image, case.truth)
    values: Values = {}
    for name, region in regions.items():
        large_enough = region.sum() >= MIN_REGION_PX
        values[f"{name}_psnr_db"] = compute_psnr_db(image, case.truth, region) if large_enough else None
        values[f"{name}_ssim"] = float(ssim[region].mean()) if large_enough else None
    sharpness = compute_sharpness(image, case.truth, regions["object"])
    values["near_psnr_db"] = values["object_psnr_db"] if trial.view_change in NEAR else None
    values["sharpness"] = sharpness
    values["log_sharpness"] = compute_log_sharpness(sharpness)
    values["gradient_agreement"] = compute_agreement(image, case.truth, regions["object"])
    values["outline_iou"] = compute_outline_iou(made.opacity, case.object_mask)
    values["copy_distance"] = compute_copy_distance(image, pasted, trial)
    return values | check_composite(image, case, trial.level)


def check_composite(image: np.ndarray, case: Case, level: MaskLevel) -> Values:
    """What must never happen, as numbers. outside_changed: share of the pixels outside the hole that differ from the
    plate at all. failed: 1.0 where nothing was inserted, because the hole shows the plate or one flat colour (which
    is also what a model's NaN becomes), else 0.0."""
    hole = case.holes[level]
    outside = (image != case.plate).any(axis=-1) & ~hole
    low, high = np.percentile(image[hole], [10, 90], axis=0)
    changed = np.abs(image[hole].astype(np.int16) - case.plate[hole]) > CHANGED_LEVELS
    failed = not changed.any() or bool((high - low < FLAT_LEVELS).all())
    return {"outside_changed": float(outside.sum() / max(1, (~hole).sum())), "failed": float(failed)}


def get_applicable(rows: Sequence[Values], name: str) -> np.ndarray:
    """The applicable values of one metric over rows, in order."""
    return np.array([row[name] for row in rows if row[name] is not None], dtype=np.float64)
