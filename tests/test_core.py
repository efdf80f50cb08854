"""imprint.core on pictures: geometry, masks, pixels and the one preparation path."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imprint.core import masks, pixels, prepare
from imprint.core.errors import InputError
from imprint.core.geometry import Box, box_from_mask, compute_iou, crop_padded, expand_box, square_around, square_crop

BOXES = st.builds(
    lambda y, x, h, w: Box(y, x, y + h, x + w),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, 40),
)
MASKS = hnp.arrays(bool, st.tuples(st.integers(2, 24), st.integers(2, 24)))


def draw_ellipse(height_px: int, width_px: int, *, centre: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    rows, cols = np.mgrid[:height_px, :width_px]
    return ((rows - centre[0]) / axes[0]) ** 2 + ((cols - centre[1]) / axes[1]) ** 2 <= 1


def draw_noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- geometry -------------------------------------------------------------------------------------------------------


@given(MASKS)
def test_box_from_mask_is_the_smallest_box_that_holds_the_mask(mask: np.ndarray) -> None:
    box = box_from_mask(mask)
    inside = masks.fill_box(box, mask.shape)
    assert not (mask & ~inside).any()
    if mask.any():
        crop = mask[box.slices]
        assert crop[0].any()
        assert crop[-1].any()
        assert crop[:, 0].any()
        assert crop[:, -1].any()
    else:
        assert box.area_px == 0


@given(BOXES, BOXES)
def test_iou_equals_the_one_counted_in_pixels(a: Box, b: Box) -> None:
    first, second = masks.fill_box(a, (100, 100)), masks.fill_box(b, (100, 100))
    assert compute_iou(a, b) == pytest.approx((first & second).sum() / (first | second).sum())
    assert compute_iou(a, b) == compute_iou(b, a)
    assert compute_iou(a, a) == 1.0


@given(BOXES, st.integers(0, 30))
def test_expand_box_grows_and_stays_inside(box: Box, margin_px: int) -> None:
    grown = expand_box(box, margin_px, (80, 80))
    assert grown.y0 <= box.y0
    assert grown.x0 <= box.x0
    assert grown.y1 >= box.y1
    assert grown.x1 >= box.x1
    assert min(grown.y0, grown.x0) >= 0
    assert max(grown.y1, grown.x1) <= 80


@given(BOXES, st.floats(1.0, 3.0), st.integers(1, 128))
def test_square_crop_is_a_square_that_holds_the_box(box: Box, context: float, min_side_px: int) -> None:
    image_hw = (81, 97)
    square = square_crop(box, image_hw, context, min_side_px)
    assert square.height_px == square.width_px
    assert square.y0 <= box.y0
    assert square.x0 <= box.x0
    assert square.y1 >= box.y1
    assert square.x1 >= box.x1
    if square.height_px <= min(image_hw):
        assert square.y0 >= 0
        assert square.x0 >= 0
        assert square.y1 <= image_hw[0]
        assert square.x1 <= image_hw[1]


@given(hnp.arrays(np.uint8, (9, 7, 3)), st.integers(-12, 12), st.integers(-12, 12), st.integers(1, 20))
def test_crop_padded_equals_slicing_a_padded_image(image: np.ndarray, y0: int, x0: int, side_px: int) -> None:
    box = Box(y0, x0, y0 + side_px, x0 + side_px)
    moved = Box(y0 + 40, x0 + 40, y0 + 40 + side_px, x0 + 40 + side_px)
    pad = ((40, 40), (40, 40), (0, 0))
    np.testing.assert_array_equal(crop_padded(image, box, fill=5), np.pad(image, pad, constant_values=5)[moved.slices])
    np.testing.assert_array_equal(crop_padded(image, box, edge=True), np.pad(image, pad, mode="edge")[moved.slices])


def test_square_around_keeps_the_centre() -> None:
    assert square_around(Box(10, 20, 14, 30), 20) == Box(2, 15, 22, 35)


# --- masks ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(16, 46), st.integers(16, 46), st.integers(3, 15), st.integers(3, 15))
def test_mask_levels_are_nested_and_box_is_the_box_of_coarse(y: int, x: int, height: int, width: int) -> None:
    levels = masks.compute_mask_levels(draw_ellipse(64, 64, centre=(y, x), axes=(height, width)))
    assert tuple(levels) == masks.MASK_LEVELS
    for finer, coarser in zip(masks.MASK_LEVELS, masks.MASK_LEVELS[1:], strict=False):
        assert not (levels[finer] & ~levels[coarser]).any()
    assert levels["coarse"].sum() > levels["exact"].sum()
    assert box_from_mask(levels["box"]) == box_from_mask(levels["coarse"])
    assert levels["box"].sum() == box_from_mask(levels["coarse"]).area_px


def test_mask_levels_of_an_empty_mask_raise() -> None:
    with pytest.raises(ValueError, match="empty"):
        masks.compute_mask_levels(np.zeros((8, 8), bool))


def test_largest_component_drops_the_smaller_ones() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8], mask[12:14, 12:14] = True, True
    kept = masks.largest_component(mask)
    assert kept.sum() == 36
    assert not kept[12:].any()
    assert not masks.largest_component(np.zeros((4, 4), bool)).any()


@given(MASKS, st.floats(0.0, 0.3))
def test_contact_margin_only_adds(mask: np.ndarray, share: float) -> None:
    assert not (mask & ~masks.add_contact_margin(mask, 20.0, share)).any()


def test_contact_margin_is_larger_below() -> None:
    grown = box_from_mask(masks.add_contact_margin(masks.fill_box(Box(20, 20, 30, 30), (60, 60)), 50.0, 0.1))
    assert grown == Box(15, 15, 40, 35)


@given(MASKS, st.floats(0.0, 6.0))
def test_feather_lies_inside_the_hole(mask: np.ndarray, width_px: float) -> None:
    weight = masks.feather_inside(mask, width_px)
    assert (weight[~mask] == 0).all()
    assert (weight[mask] > 0).all()
    assert weight.max(initial=0) <= 1


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_model_range_round_trip_is_exact_for_every_grey_level() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    scaled = pixels.to_model_range(image)
    assert scaled.dtype == np.float32
    assert scaled.shape == (3, 16, 16)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    np.testing.assert_array_equal(pixels.from_model_range(scaled), image)
    batch = np.stack([image, image])
    np.testing.assert_array_equal(pixels.from_model_range(pixels.to_model_range(batch)), batch)


def test_put_on_black_weights_by_opacity() -> None:
    rgba = np.full((1, 3, 4), 200, np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    np.testing.assert_array_equal(pixels.put_on_black(rgba)[0, :, 0], [0, round(200 * 128 / 255), 200])


@pytest.mark.parametrize("channels", [3, 4])
def test_png_round_trip_is_exact(tmp_path: Path, channels: int) -> None:
    image = draw_noise(11, 13, channels)
    pixels.save_image(tmp_path / "image.png", image)
    np.testing.assert_array_equal(pixels.load_image(tmp_path / "image.png"), image)


def test_masks_and_grey_images_round_trip(tmp_path: Path) -> None:
    mask = draw_ellipse(20, 30, centre=(10, 12), axes=(6, 9))
    pixels.save_image(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(pixels.load_mask(tmp_path / "mask.png"), mask)
    assert pixels.load_image(tmp_path / "mask.png").shape == (20, 30, 3)


def test_sixteen_bit_images_come_as_eight_bit(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4, 3), 257 * 90, np.uint16))
    assert (pixels.load_image(tmp_path / "deep.png") == 90).all()


def test_unreadable_images_are_input_errors_that_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, part in {
        "absent.png": "cannot be read",
        "text.png": "not a readable image",
        "empty.png": "not a readable",
    }.items():
        for load in (pixels.load_image, pixels.load_mask):
            with pytest.raises(InputError, match=part) as caught:
                load(tmp_path / name)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="folder"):
        pixels.load_image(tmp_path)
    with pytest.raises(InputError, match="suffix"):
        pixels.save_image(tmp_path / "image.tiff", draw_noise(4, 4, 3))


def test_resize_mask_keeps_the_share_and_resize_image_the_mean() -> None:
    mask = draw_ellipse(96, 96, centre=(48, 48), axes=(30, 20))
    assert pixels.resize_mask(mask, (48, 48)).mean() == pytest.approx(mask.mean(), rel=0.03)
    assert pixels.resize_mask(mask, (192, 192)).mean() == pytest.approx(mask.mean(), rel=0.03)
    image = draw_noise(64, 64, 3)
    assert pixels.resize_image(image, (16, 16)).mean() == pytest.approx(image.mean(), abs=0.5)


# --- the preparation path -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 130), st.integers(40, 130), BOXES, st.sampled_from([16, 32, 64]))
def test_everything_outside_the_hole_is_bit_identical(height: int, width: int, box: Box, size_px: int) -> None:
    background = draw_noise(height, width, 3)
    hole = masks.fill_box(Box(min(box.y0, height - 2), min(box.x0, width - 2), *box[2:]), (height, width))
    crop = prepare.crop_scene(background, hole, size_px)
    assert crop.image.shape == (size_px, size_px, 3)
    assert crop.hole.shape == (size_px, size_px)
    result = prepare.paste_scene(background, hole, 255 - crop.image, crop.box)
    np.testing.assert_array_equal(result[~hole], background[~hole])
    assert result.shape == background.shape
    assert result.dtype == np.uint8


def test_a_background_of_the_models_size_is_taken_whole_and_pasted_without_resampling() -> None:
    background, generated = draw_noise(64, 64, 3), draw_noise(64, 64, 3, seed=1)
    hole = masks.fill_box(Box(20, 10, 50, 40), (64, 64))
    crop = prepare.crop_scene(background, hole, 64)
    assert crop.box == Box(0, 0, 64, 64)
    np.testing.assert_array_equal(crop.image, background)
    result = prepare.paste_scene(background, hole, generated, crop.box)
    np.testing.assert_array_equal(result[25:45, 15:35], generated[25:45, 15:35])  # further inside than the feather


def test_fill_hole_hides_every_pixel_of_the_hole() -> None:
    hole = masks.fill_box(Box(2, 2, 6, 6), (8, 8))
    first, second = draw_noise(8, 8, 3), draw_noise(8, 8, 3)
    second[hole] = 255 - second[hole]
    np.testing.assert_array_equal(prepare.fill_hole(first, hole), prepare.fill_hole(second, hole))
    assert (prepare.fill_hole(first, hole)[hole] == pixels.MID_GREY).all()


def test_crop_object_centres_the_object_and_keeps_its_colour() -> None:
    mask = draw_ellipse(90, 120, centre=(30, 80), axes=(20, 10))
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None]  # of the object, as a camera mixes it
    image = np.rint(share * [200, 40, 90] + (1 - share) * 255).astype(np.uint8)
    canvas = prepare.crop_object(image, mask, 48)
    box = box_from_mask(canvas[..., 3] > 127)
    assert canvas.shape == (48, 48, 4)
    assert abs(box.y0 + box.y1 - 48) <= 2
    assert abs(box.x0 + box.x1 - 48) <= 2
    assert max(box.height_px, box.width_px) == pytest.approx(48 / prepare.OBJECT_MARGIN, abs=2)
    np.testing.assert_allclose(canvas[canvas[..., 3] > 20][:, :3].astype(int) - [200, 40, 90], 0, atol=12)
    assert not canvas[canvas[..., 3] == 0].any()


def test_crop_object_of_nothing_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no pixels"):
        prepare.crop_object(draw_noise(8, 8, 3), np.zeros((8, 8), bool), 16)
