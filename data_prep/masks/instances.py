"""From a frame's foreground probability to clean object masks, each with what is needed to judge and to link it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from imprint.core.geometry import Box, box_from_mask, compute_border_contact
from imprint.core.masks import largest_component
from imprint.core.params import SegmentObjects

GROUP_SHARE = 0.01  # pieces nearer than about twice this share of the frame's shorter side count as one object
HOLE_SHARE = 0.05  # holes up to this share of the object are filled
RIM_PX = 2  # half the width of the rim in which the network's certainty is measured
SURE_MARGIN = 0.3  # a probability this far from 0.5 is a sure one
HISTOGRAM_BINS = 6  # per colour channel


@dataclass(frozen=True)
class Instance:
    """One object of one frame. `mask` is bool [box.height_px, box.width_px]; histogram: colours, sums to 1."""

    box: Box
    mask: np.ndarray
    area_px: int
    area_share: float
    confidence: float
    boundary_confidence: float
    border_contact: float
    histogram: np.ndarray


def find_instances(
    image: np.ndarray, probability: np.ndarray, params: SegmentObjects
) -> tuple[list[Instance], list[tuple[str, Box]]]:
    """Objects of an RGB frame from its foreground probability float32 [h, w], and why and where others were rejected.

    Pieces that nearly touch are one object, whose largest piece must make up `min_component_share` of it: two
    objects in a near contact are rather dropped than joined.
    """
    groups = _split_groups(probability >= params.threshold)
    objects = [group for group in groups if group.sum() >= params.min_area_share * group.size]  # the others are specks
    instances, rejected = [], []
    for group in groups:
        others = [other for other in objects if other is not group]
        taken = np.any(others, axis=0) if others else np.zeros_like(group)
        result = _clean_object(image, probability, group, params, taken=taken)
        if isinstance(result, str):
            rejected.append((result, box_from_mask(group)))
        else:
            instances.append(result)
    return instances, rejected


def _split_groups(foreground: np.ndarray) -> list[np.ndarray]:
    radius_px = max(1, round(GROUP_SHARE * min(foreground.shape)))
    kernel = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    count, labels = cv2.connectedComponents(cv2.dilate(foreground.astype(np.uint8), kernel), connectivity=8)
    return [foreground & (labels == label) for label in range(1, count)]


def _clean_object(
    image: np.ndarray, probability: np.ndarray, group: np.ndarray, params: SegmentObjects, *, taken: np.ndarray
) -> Instance | str:
    """The object's instance, or the reason against it. taken: pixels of other objects, which a hole may hold."""
    group_px = int(group.sum())
    if group_px < params.min_area_share * group.size:
        return "too_small"
    piece = largest_component(group)
    if piece.sum() < params.min_component_share * group_px:
        return "in_pieces"
    mask = fill_small_holes(piece, HOLE_SHARE) & ~taken
    if mask.sum() > params.max_area_share * mask.size:
        return "too_large"
    confidence = float(probability[mask].mean())
    if confidence < params.min_confidence:
        return "low_confidence"
    return _build_instance(image, mask, confidence, compute_boundary_confidence(probability, mask))


def describe_box(box: Box) -> str:
    """As the ledger says where something was: `box y0 x0 y1 x1`."""
    return f"box {box.y0} {box.x0} {box.y1} {box.x1}"


def measure_given(image: np.ndarray, mask: np.ndarray, params: SegmentObjects) -> Instance | str:
    """The instance of a given mask, bool [h, w] and not empty, as it is; or the reason against it."""
    area_px = int(mask.sum())
    if area_px < params.min_area_share * mask.size:
        return "too_small"
    if largest_component(mask).sum() < params.min_component_share * area_px:
        return "in_pieces"
    if area_px > params.max_area_share * mask.size:
        return "too_large"
    return _build_instance(image, mask, 1.0, 1.0)


def measure_object(
    image: np.ndarray, probability: np.ndarray, mask: np.ndarray, params: SegmentObjects, *, taken: np.ndarray
) -> Instance | str:
    """The instance of one object's mask, bool [h, w] and not empty, cleaned as a found one; or the reason against it.

    taken: pixels of other objects, which a hole may hold.
    """
    return _clean_object(image, probability, mask, params, taken=taken)


def uncover(instance: Instance, seen: np.ndarray, frame_hw: tuple[int, int], params: SegmentObjects) -> Instance | None:
    """The instance with those pixels alone that are `seen`, bool like its mask; None if they are no object any more."""
    area_px = int(seen.sum())
    if area_px == instance.area_px:
        return instance
    if area_px < max(params.min_area_share * frame_hw[0] * frame_hw[1], 1):
        return None
    if largest_component(seen).sum() < params.min_component_share * area_px:
        return None
    inner, outer = box_from_mask(seen), instance.box
    box = Box(outer.y0 + inner.y0, outer.x0 + inner.x0, outer.y0 + inner.y1, outer.x0 + inner.x1)
    return replace(
        instance,
        box=box,
        mask=seen[inner.slices],
        area_px=area_px,
        area_share=area_px / (frame_hw[0] * frame_hw[1]),
        border_contact=compute_border_contact(box, frame_hw),
    )


def _build_instance(image: np.ndarray, mask: np.ndarray, confidence: float, boundary_confidence: float) -> Instance:
    box, area_px = box_from_mask(mask), int(mask.sum())
    return Instance(
        box=box,
        mask=mask[box.slices],
        area_px=area_px,
        area_share=area_px / mask.size,
        confidence=confidence,
        boundary_confidence=boundary_confidence,
        border_contact=compute_border_contact(box, mask.shape),
        histogram=compute_histogram(image[mask]),
    )


def fill_small_holes(mask: np.ndarray, max_share: float) -> np.ndarray:
    """`mask` with those holes filled that are at most `max_share` of its area; a handle's opening stays open."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    limit_px = max_share * mask.sum()
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    small = [label for label in range(1, count) if stats[label, cv2.CC_STAT_AREA] <= limit_px and label not in rim]
    return mask | np.isin(labels, small)


def compute_boundary_confidence(probability: np.ndarray, mask: np.ndarray) -> float:
    """Share of the rim (within `RIM_PX` of the mask's edge) where the network is sure, 0-1."""
    kernel = np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8)
    grey = mask.astype(np.uint8)
    rim = cv2.dilate(grey, kernel) > cv2.erode(grey, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return float((np.abs(probability[rim] - 0.5) >= SURE_MARGIN).mean()) if rim.any() else 1.0


def compute_histogram(pixels: np.ndarray) -> np.ndarray:
    """Joint colour histogram of RGB pixels [n, 3] in Lab, flattened, sums to 1; blurred, to forgive shifts of light."""
    lab = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    edges = [np.linspace(0, 256, HISTOGRAM_BINS + 1), *[np.linspace(64, 192, HISTOGRAM_BINS + 1)] * 2]
    lab[:, 1:] = np.clip(lab[:, 1:], 64, 191)
    counts, _ = np.histogramdd(lab, edges)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if other == axis else (0, 0) for other in range(3)])
        low, high = (np.take(padded, range(start, start + HISTOGRAM_BINS), axis) for start in (0, 2))
        counts = 0.5 * counts + 0.25 * (low + high)
    return (counts / counts.sum()).ravel()


def compare_histograms(a: np.ndarray, b: np.ndarray) -> float:
    """Bhattacharyya coefficient, 1 for the same colours."""
    return float(np.sqrt(a * b).sum())
