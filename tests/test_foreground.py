"""The object's own colours at its edge: nearer to the truth than the mixed ones, and nothing else is touched."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from imprint.core.foreground import cut_along, estimate_foreground
from imprint.core.prepare import crop_object

HW = (64, 80)
RED, GREEN = (200, 40, 40), (30, 160, 60)


def draw_soft_disc(object_colour, background_colour) -> tuple[np.ndarray, np.ndarray]:
    """A disc whose edge is mixed with the background as a lens does it, and its mask at half opacity."""
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    opacity = (np.hypot(rows - 32, columns - 40) < 20).astype(np.float32)
    opacity = cv2.GaussianBlur(opacity, (0, 0), 0.8)
    mixed = opacity[..., None] * np.array(object_colour) + (1 - opacity[..., None]) * np.array(background_colour)
    return np.rint(mixed).astype(np.uint8), opacity >= 0.5


def find_rim(mask: np.ndarray) -> np.ndarray:
    return mask & (cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)


@pytest.mark.parametrize("background", [GREEN, (255, 255, 255), (0, 0, 0)])
def test_the_rim_of_a_plain_object_gets_its_colour_back(background):
    image, mask = draw_soft_disc(RED, background)
    rim = find_rim(mask)
    before = np.abs(image[rim].astype(float) - RED).mean()
    after = np.abs(estimate_foreground(image, mask)[rim].astype(float) - RED).mean()
    assert before > 8
    assert after < before / 3


def test_a_cut_out_on_another_ground_has_neither_rim_nor_steps():
    """Against what the camera would have seen there; the hard mask with the mixed colours is what it was before."""
    image, mask = draw_soft_disc(RED, GREEN)
    truth = draw_soft_disc(RED, (0, 0, 0))[0].astype(float)
    cut = cut_along(image, mask).astype(float)
    made, before = cut[..., :3] * cut[..., 3:] / 255, image * mask[..., None].astype(float)
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    ring &= ~(cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    assert np.abs(made - truth)[ring].mean() < 0.35 * np.abs(before - truth)[ring].mean()


def test_the_inside_stays_bit_identical():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (*HW, 3), np.uint8), draw_soft_disc(RED, GREEN)[1]
    inside = cv2.erode(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    np.testing.assert_array_equal(estimate_foreground(image, mask)[inside], image[inside])


def test_a_mask_of_everything_changes_nothing():
    image = np.random.default_rng(1).integers(0, 256, (*HW, 3), np.uint8)
    np.testing.assert_array_equal(estimate_foreground(image, np.ones(HW, bool)), image)


def test_an_object_on_black_has_no_fringe_but_an_opacity_is_believed():
    image, mask = draw_soft_disc(RED, (255, 255, 255))
    side = 44  # the disc's 40 px and the margin: the canvas keeps its scale
    hard, believed = crop_object(image, mask, side), crop_object(image, mask.astype(np.uint8) * 255, side)
    np.testing.assert_array_equal(hard[..., 3], believed[..., 3])
    rim = find_rim(hard[..., 3] > 0)
    assert hard[rim, 1].max() < 90  # a red rim, where the picture's is up to half white
    assert believed[rim, 1].max() > 130
