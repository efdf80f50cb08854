"""imprint.evaluation.measures and gradients: closed forms, and that known faults move the measures meant for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from skimage.transform import swirl

from imprint.core.geometry import Box
from imprint.core.masks import MASK_LEVELS, fill_box
from imprint.evaluation import gradients, measures
from imprint.evaluation.cases import Case, load_cases
from imprint.evaluation.composites import Made, make_baselines
from imprint.evaluation.summary import measure_all
from imprint.evaluation.trials import Trial
from tests.evaluation_cases import write_cases
from tests.source_tree import ROOT

LEVELS = list(MASK_LEVELS)
WHOLE = np.ones((64, 64), bool)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return load_cases(write_cases(tmp_path_factory.mktemp("cases") / "cases.tar", 6), LEVELS, 6).cases


@pytest.fixture(scope="module")
def rendered() -> list[Case]:
    """Shipped cases: prints, edges and the renderer's noise."""
    return load_cases(ROOT / "demo" / "assets" / "cases.tar", LEVELS, 12).cases


def draw_ramp(step_y: float, step_x: float) -> np.ndarray:
    rows, columns = np.mgrid[0:64, 0:64]
    return np.repeat((step_y * rows + step_x * columns)[..., None], 3, axis=2).astype(np.uint8)


def draw_print(seed: int = 0) -> np.ndarray:
    """Smooth blots: gradients of all directions."""
    noise = np.random.default_rng(seed).normal(0, 1, (64, 64, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.clip(128 + smooth / smooth.std() * 45, 0, 255).astype(np.uint8)


def fill(case: Case, level: str, picture: np.ndarray) -> np.ndarray:
    return np.where(case.holes[level][..., None], picture, case.plate)  # pyright: ignore[reportArgumentType]


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_the_closed_form() -> None:
    truth = np.full((8, 8, 3), 100, np.uint8)
    region = fill_box(Box(2, 2, 6, 6), (8, 8))
    image = np.where(region[..., None], truth + np.uint8(10), np.uint8(0))  # what lies outside must not count
    assert measures.compute_psnr_db(image, truth, region) == pytest.approx(20 * np.log10(255 / 10))
    assert measures.compute_psnr_db(truth, truth, region) == pytest.approx(measures.MAX_PSNR_DB)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    noisy = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    assert measures.compute_ssim_map(truth, truth) == pytest.approx(np.ones((48, 48)))
    assert 0.5 < measures.compute_ssim_map(noisy, truth).mean() < 0.98


def test_sharpness_of_ramps_is_the_ratio_of_their_slopes() -> None:
    truth = draw_ramp(0, 2)
    assert gradients.compute_sharpness(draw_ramp(0, 2), truth, WHOLE) == pytest.approx(1.0)
    assert gradients.compute_sharpness(draw_ramp(0, 1), truth, WHOLE) == pytest.approx(0.5)
    assert gradients.compute_sharpness(draw_ramp(2, 2), truth, WHOLE) == pytest.approx(np.sqrt(2))
    assert gradients.compute_sharpness(np.zeros_like(truth), truth, WHOLE) == 0.0


def test_agreement_of_ramps_is_the_share_of_gradient_that_both_have() -> None:
    truth = draw_ramp(0, 2)
    assert gradients.compute_agreement(truth, truth, WHOLE) == pytest.approx(1.0)
    assert gradients.compute_agreement(draw_ramp(0, 1), truth, WHOLE) == pytest.approx(0.5)  # half the contrast
    assert gradients.compute_agreement(draw_ramp(0, 4), truth, WHOLE) == pytest.approx(0.5)  # twice, by symmetry
    assert gradients.compute_agreement(draw_ramp(2, 0), truth, WHOLE) == pytest.approx(0.0)  # across
    assert gradients.compute_agreement(255 - truth, truth, WHOLE) == pytest.approx(0.0)  # the other way round
    # Half-way between two of the eight directions: half of its magnitude lies in the truth's.
    angle = np.pi / 8
    slanted = np.round(8 * np.array([np.sin(angle), np.cos(angle)])) / 8
    between = gradients.compute_agreement(draw_ramp(*(2 * slanted)), truth, WHOLE)
    assert between is not None
    assert 0.25 < between < 0.6


def test_neither_is_computed_for_a_truth_without_gradient_or_of_few_pixels() -> None:
    flat, small = np.full((64, 64, 3), 90, np.uint8), fill_box(Box(0, 0, 6, 6), (64, 64))
    for compute in (gradients.compute_sharpness, gradients.compute_agreement):
        assert compute(draw_ramp(0, 2), flat, WHOLE) is None
        assert compute(draw_ramp(0, 2), draw_ramp(0, 2), small) is None
    assert gradients.compute_log_sharpness(None) is None


def test_half_and_twice_the_sharpness_are_equally_wrong() -> None:
    half, right, twice, flat = map(gradients.compute_log_sharpness, (0.5, 1.0, 2.0, 0.0))
    assert half == twice == pytest.approx(np.log(2))
    assert (right, flat) == (0.0, gradients.MAX_LOG_SHARPNESS)


def test_the_outline_and_what_lies_outside_are_no_gradient_of_the_object() -> None:
    region = fill_box(Box(16, 16, 48, 48), (64, 64))
    truth = draw_print()
    elsewhere = np.where(region[..., None], truth, np.uint8(255))
    assert gradients.compute_sharpness(elsewhere, truth, region) == 1.0
    assert gradients.compute_agreement(elsewhere, truth, region) == 1.0


def test_the_outline_is_read_off_the_opacity_alone() -> None:
    mask = fill_box(Box(10, 10, 30, 30), (64, 64))
    opacity = fill_box(Box(10, 20, 30, 40), (64, 64)).astype(np.uint8) * 255
    assert measures.compute_outline_iou(opacity, mask) == pytest.approx(1 / 3)
    assert measures.compute_outline_iou(mask.astype(np.uint8) * 128, mask) == 1.0
    assert measures.compute_outline_iou(mask.astype(np.uint8) * 127, mask) == 0.0
    assert measures.compute_outline_iou(None, mask) is None


def test_regions_are_inside_the_hole_and_small_ones_do_not_apply(cases: list[Case]) -> None:
    trial = Trial(cases[0], 0, "0-20", "exact", 0)
    paste = make_baselines([trial])["paste"][0]
    assert paste is not None
    opacity = trial.case.object_mask.astype(np.uint8) * 255
    exact = measures.measure_composite(Made(fill(trial.case, "exact", trial.case.truth), opacity), trial, paste)
    assert exact["object_psnr_db"] == exact["near_psnr_db"] == measures.MAX_PSNR_DB
    assert exact["shadow_psnr_db"] is exact["surround_ssim"] is None
    assert exact["outline_iou"] == 1.0
    box = measures.compute_regions(trial.case, "box")
    assert (box["object"] | box["surround"]).sum() == trial.case.holes["box"].sum()
    assert not (box["shadow"] & ~box["surround"]).any()


def test_a_changed_pixel_outside_the_hole_is_counted(cases: list[Case]) -> None:
    case = cases[0]
    image = fill(case, "box", case.truth)
    image[0, 0, 0] ^= 1
    share = 1 / (~case.holes["box"]).sum()
    assert measures.check_composite(image, case, "box") == {"outside_changed": pytest.approx(share), "failed": 0.0}


@pytest.mark.parametrize("fault", ["plate", "flat", "NaN"])
def test_a_hole_that_shows_nothing_is_a_failure(cases: list[Case], fault: str) -> None:
    for case in cases:
        for level, hole in case.holes.items():
            image = case.plate.copy()
            if fault != "plate":
                image[hole] = 0 if fault == "NaN" else np.random.default_rng(0).integers(90, 93, 3)
            assert measures.check_composite(image, case, level)["failed"] == 1.0
            assert measures.check_composite(case.truth, case, level)["failed"] == 0.0


# --- known faults, in rendered pictures -----------------------------------------------------------------------------


def measure_faulty(
    cases: Sequence[Case], spoil: Callable[[Case], np.ndarray], find_opacity: Callable[[Case], np.ndarray] | None = None
) -> dict[str, float]:
    """Mean values of what `spoil` makes of each case, put into its box."""
    trials = [Trial(case, place, "20-45", "box", 0) for place, case in enumerate(cases)]
    find = find_opacity or (lambda case: case.object_mask)
    made: list[Made | None] = [
        Made(fill(case, "box", spoil(case)), find(case).astype(np.uint8) * 255) for case in cases
    ]
    composites = {"ours": made, "from_noise": [None] * len(cases), **make_baselines(trials)}
    rows = [row.values for row in measure_all(cases, trials, composites) if row.method == "ours"]
    columns = {name: measures.get_applicable(rows, name) for name in rows[0]}
    return {name: float(column.mean()) for name, column in columns.items() if len(column) == len(rows)}


def blur(sigma_px: float) -> Callable[[Case], np.ndarray]:
    return lambda case: cv2.GaussianBlur(case.truth, (0, 0), sigma_px)


def add_noise(level: float) -> Callable[[Case], np.ndarray]:
    rng = np.random.default_rng(0)
    return lambda case: np.clip(case.truth + rng.normal(0, level, case.truth.shape), 0, 255).astype(np.uint8)


def turn_print(strength: float) -> Callable[[Case], np.ndarray]:
    def spoil(case: Case) -> np.ndarray:
        rows, columns = np.nonzero(case.object_mask)
        options = {"center": (columns.mean(), rows.mean()), "strength": strength, "radius": 0.8 * np.ptp(rows)}
        return swirl(case.truth, **options, preserve_range=True).astype(np.uint8)

    return spoil


def test_the_truth_is_right_by_every_measure(rendered: list[Case]) -> None:
    right = measure_faulty(rendered, lambda case: case.truth)
    assert (right["sharpness"], right["log_sharpness"], right["gradient_agreement"]) == (1.0, 0.0, 1.0)
    assert (right["object_psnr_db"], right["outline_iou"]) == (measures.MAX_PSNR_DB, 1.0)
    assert right["copy_distance"] > 20  # another view in another light


def test_blur_is_unsharp_and_the_more_the_worse(rendered: list[Case]) -> None:
    weak, strong = measure_faulty(rendered, blur(1.0)), measure_faulty(rendered, blur(3.0))
    assert strong["sharpness"] < weak["sharpness"] < 0.75
    assert strong["log_sharpness"] > weak["log_sharpness"] > 0.3
    assert strong["gradient_agreement"] < weak["gradient_agreement"] < 0.7


def test_noise_wins_sharpness_but_not_its_logarithm_and_not_the_agreement(rendered: list[Case]) -> None:
    weak, strong = measure_faulty(rendered, add_noise(12)), measure_faulty(rendered, add_noise(40))
    assert strong["sharpness"] > weak["sharpness"] > 1.25
    assert strong["log_sharpness"] > weak["log_sharpness"] > 0.2
    assert strong["gradient_agreement"] < weak["gradient_agreement"] < 0.75


def test_a_swirled_print_is_sharp_but_does_not_agree(rendered: list[Case]) -> None:
    weak, strong = measure_faulty(rendered, turn_print(2)), measure_faulty(rendered, turn_print(8))
    assert strong["sharpness"] > 0.75
    assert strong["gradient_agreement"] < weak["gradient_agreement"] < 0.75
    assert strong["object_psnr_db"] < weak["object_psnr_db"]


def test_a_shift_of_a_pixel_is_better_than_a_blur_that_hides_it(rendered: list[Case]) -> None:
    """Where PSNR prefers the blur, the agreement does not."""
    moved = measure_faulty(rendered, lambda case: np.roll(case.truth, 2, axis=1))
    hidden = measure_faulty(rendered, lambda case: cv2.GaussianBlur(np.roll(case.truth, 2, axis=1), (0, 0), 3.0))
    assert hidden["object_psnr_db"] > moved["object_psnr_db"]
    assert hidden["gradient_agreement"] < moved["gradient_agreement"]
    assert hidden["log_sharpness"] > moved["log_sharpness"]


def test_a_shifted_crop_moves_the_outline_the_agreement_and_psnr(rendered: list[Case]) -> None:
    moved = measure_faulty(
        rendered, lambda case: np.roll(case.truth, 8, axis=0), lambda case: np.roll(case.object_mask, 8, axis=0)
    )
    assert moved["outline_iou"] < 0.8
    assert moved["gradient_agreement"] < 0.6
    assert moved["object_psnr_db"] < 20
    assert moved["sharpness"] == pytest.approx(1.0, abs=0.3)


def test_another_object_of_the_same_outline_is_not_recognised(rendered: list[Case]) -> None:
    others = {case.name: other for case, other in zip(rendered, rendered[1:] + rendered[:1], strict=True)}

    def swap(case: Case) -> np.ndarray:
        """The next case's reference, stretched over the object."""
        rows, columns = np.nonzero(case.object_mask)
        picture, size = case.truth.copy(), (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        reference = others[case.name].references["20-45"]
        ys, xs = np.nonzero(reference[..., 3] > 127)
        thing = reference[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1, :3]
        place = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        picture[place] = cv2.resize(thing, size, interpolation=cv2.INTER_AREA)
        return np.where(case.object_mask[..., None], picture, case.truth)

    right, swapped = measure_faulty(rendered, lambda case: case.truth), measure_faulty(rendered, swap)
    assert right["identity_top1"] > 0.9
    assert swapped["identity_top1"] < 0.2
    assert swapped["gradient_agreement"] < 0.4
    assert swapped["outline_iou"] == 1.0


def test_a_copy_has_the_identity_and_no_distance(rendered: list[Case]) -> None:
    trials = [Trial(case, place, "45-90", "box", 0) for place, case in enumerate(rendered)]
    composites = {"ours": [None] * len(trials), "from_noise": [None] * len(trials), **make_baselines(trials)}
    rows = measure_all(rendered, trials, composites)
    copies = [row.values for row in rows if row.method == "paste"]
    assert {values["copy_distance"] for values in copies} == {0.0}
    assert np.mean([values["identity_top1"] for values in copies]) > 0.9  # type: ignore[arg-type]
    matched = [row.values["copy_distance"] for row in rows if row.method == "matched"]
    assert min(distance for distance in matched if distance is not None) > 1.0
