"""What lies behind the objects of a frame: how much it changed, and whether two frames show the same place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

THUMBNAIL_PX = 32
BLUR_PX = 1.0
MIN_COMMON_SHARE = 0.2  # of the frame that must be free of objects in both frames
MIN_SPREAD = 8.0  # grey levels: below it a background is plain, and plain backgrounds do not name a place
CHANGED_LEVELS = 16.0  # grey levels of the blurred thumbnail
FEATURE_SIDE_PX = 512
MAX_FEATURES = 600
MATCH_RATIO = 0.8  # Lowe's: the best match is that much nearer than the second best
MAX_ERROR_PX = 4.0


@dataclass(frozen=True)
class Features:
    """Points of a background [n, 2] in pixels of the frame at `FEATURE_SIDE_PX`, and their descriptors of length 1."""

    points: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Backgrounds:
    """Frames at 32 x 32 px: blurred colours float32 [n, 32, 32, 3], and what is free of objects bool [n, 32, 32]."""

    colours: np.ndarray
    free: np.ndarray

    def select(self, rows: np.ndarray) -> Backgrounds:
        return Backgrounds(self.colours[rows], self.free[rows])


def shrink_background(image: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One frame's row of `Backgrounds` from RGB uint8 [h, w, 3] and bool [h, w], true on any object.

    No colour of an object enters. A pixel is free if it and its neighbours hold next to nothing of one.
    """
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    outside = (~objects).astype(np.uint8)
    small = cv2.resize((image * outside[..., None]).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    weight = cv2.resize(outside.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small, spread = (cv2.GaussianBlur(values, (0, 0), BLUR_PX) for values in (small, weight))
    free = cv2.erode((weight > 0.98).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return small / np.maximum(spread, 1e-3)[..., None], free


def compute_changed_share(frames: Backgrounds, pairs: np.ndarray) -> np.ndarray:
    """Share of the background, 0-1, that changed by more than `CHANGED_LEVELS` between two frames, for `pairs` [n, 2].

    Of what is free of objects in both; 1 where that is too little. A camera that moves changes most of it, as far as it
    has a pattern, and a cut or another light all of it; a hand or a passer-by changes the share that it covers.
    """
    shares = np.ones(len(pairs))
    for number, (first, second) in enumerate(pairs.tolist()):
        common = frames.free[first] & frames.free[second]
        if common.mean() >= MIN_COMMON_SHARE:
            levels = np.abs(frames.colours[first][common] - frames.colours[second][common]).max(axis=1)
            shares[number] = (levels > CHANGED_LEVELS).mean()
    return shares


def compute_differences(first: Backgrounds, second: Backgrounds) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square of the colours' difference, in grey levels, and the spread of the plainer one, both [n, m].

    Taken where both frames are free of objects, place by place: a camera that moved counts as a change, as does the
    light. Infinite where too little is free in both.
    """
    masks = [frames.free.reshape(len(frames.free), -1).astype(np.float32) for frames in (first, second)]
    common_px = masks[0] @ masks[1].T
    count = np.maximum(common_px, 1.0)
    squares = np.zeros_like(common_px)
    spreads = [np.zeros_like(common_px), np.zeros_like(common_px)]
    for channel in range(3):
        a, b = (
            frames.colours[..., channel].reshape(len(mask), -1) * mask
            for frames, mask in zip((first, second), masks, strict=True)
        )
        power_a, power_b = (a * a) @ masks[1].T, masks[0] @ (b * b).T
        squares += power_a + power_b - 2.0 * (a @ b.T)
        spreads[0] += power_a / count - (a @ masks[1].T / count) ** 2
        spreads[1] += power_b / count - (masks[0] @ b.T / count) ** 2
    difference = np.sqrt(np.maximum(squares, 0.0) / count / 3.0)
    difference[common_px < MIN_COMMON_SHARE * masks[0].shape[1]] = np.inf
    return difference, np.sqrt(np.maximum(np.minimum(*spreads), 0.0) / 3.0)


def find_features(image: np.ndarray, objects: np.ndarray) -> Features:
    """SIFT features of an RGB frame outside its objects."""
    scale = min(1.0, FEATURE_SIDE_PX / max(image.shape[:2]))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1.0 else grey
    covered = cv2.resize(objects.astype(np.uint8), grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    radius_px = max(1, round(0.02 * max(grey.shape)))
    free = cv2.dilate(covered, np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)) == 0
    keypoints, found = cv2.SIFT.create(nfeatures=MAX_FEATURES).detectAndCompute(grey, free.astype(np.uint8) * 255)
    descriptors = np.zeros((0, 128), np.float32) if found is None else found
    lengths = np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
    points = np.array([point.pt for point in keypoints], np.float32).reshape(-1, 2)
    return Features(points, (descriptors / lengths).astype(np.float32))


def count_matches(first: Features, second: Features, *, least: int = 3) -> int:
    """Features of two backgrounds that match each other under one shift, turn and change of size; the same place.

    0 where fewer than `least` can match.
    """
    if min(len(first.points), len(second.points)) < max(2, least):
        return 0
    likeness = first.descriptors @ second.descriptors.T
    best = likeness.argmax(axis=1)
    two = np.sqrt(np.maximum(2.0 - 2.0 * np.partition(likeness, -2, axis=1)[:, -2:], 0.0))  # second best, best
    sure = (two[:, 1] < MATCH_RATIO * two[:, 0]) & (likeness.argmax(axis=0)[best] == np.arange(len(best)))
    if sure.sum() < max(3, least):
        return 0
    cv2.setRNGSeed(0)
    _, inliers = cv2.estimateAffinePartial2D(
        first.points[sure], second.points[best[sure]], method=cv2.RANSAC, ransacReprojThreshold=MAX_ERROR_PX
    )
    return 0 if inliers is None else int(inliers.sum())
