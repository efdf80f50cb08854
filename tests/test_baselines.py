"""imprint.evaluation.baselines: where the object is placed, and the three ways of pasting it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.core.geometry import Box
from imprint.core.masks import MASK_LEVELS, fill_box
from imprint.evaluation.baselines import clone_object, match_colours, paste_object, place_object
from imprint.evaluation.cases import Case, load_cases
from imprint.evaluation.composites import BASELINES, build_request, make_baselines
from imprint.evaluation.measures import compute_outline_iou
from imprint.evaluation.trials import Trial
from imprint.inference.composer import Compositor
from imprint.models import PRESETS, build_model
from imprint.models.presets import choose_flow
from tests.evaluation_cases import write_cases


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return load_cases(write_cases(tmp_path_factory.mktemp("cases") / "cases.tar", 6), list(MASK_LEVELS), 6).cases


def test_baselines_leave_the_outside_alone_and_show_the_object(cases: list[Case]) -> None:
    trials = [Trial(case, place, "0-20", level, 0) for place, case in enumerate(cases) for level in MASK_LEVELS]
    composites = make_baselines(trials)
    assert tuple(composites) == BASELINES
    for method, answers in composites.items():
        for trial, made in zip(trials, answers, strict=True):
            assert made is not None
            outside = ~trial.hole
            np.testing.assert_array_equal(made.picture[outside], trial.case.plate[outside])
            iou = compute_outline_iou(made.opacity, trial.case.object_mask)
            assert iou is not None
            assert iou > 0.3, (trial.case.name, trial.level, method)


def test_a_placed_object_fits_the_holes_box_and_keeps_its_shape() -> None:
    reference = np.zeros((50, 50, 4), np.uint8)
    reference[10:20, 5:45] = 200, 100, 50, 255  # 40 x 10
    hole = fill_box(Box(10, 8, 40, 28), (64, 64))
    for level in (None, "exact", "soft"):
        placed = place_object(reference, hole, level)
        rows, cols = np.nonzero(placed[..., 3])
        assert (cols.min(), cols.max()) == (8, 27)
        assert (rows.min(), rows.max()) == (22, 26)
        np.testing.assert_array_equal(placed[24, 18], [200, 100, 50, 255])


def test_in_a_roomy_hole_it_is_smaller_and_stands_at_the_bottom() -> None:
    reference = np.zeros((50, 50, 4), np.uint8)
    reference[5:45, 10:30] = 255  # 20 x 40
    for level in ("coarse", "box"):
        placed = place_object(reference, fill_box(Box(10, 4, 50, 44), (64, 96)), level)
        rows, cols = np.nonzero(placed[..., 3])
        assert (rows.min(), rows.max() + 1) == (16, 48)  # 0.8 of 40, a twentieth above the hole's lower edge
        assert (cols.min(), cols.max() + 1) == (16, 32)


def test_pasting_the_true_view_gives_the_truth(cases: list[Case]) -> None:
    for case in cases:
        true_view = np.dstack([case.truth, case.object_mask.astype(np.uint8) * 255])
        placed = place_object(true_view, case.holes["exact"], "exact")
        pasted = paste_object(placed, case.plate, case.holes["exact"])
        np.testing.assert_array_equal(pasted[case.object_mask], case.truth[case.object_mask])


def test_matched_colours_move_towards_the_scenes_and_keep_the_print() -> None:
    placed = np.zeros((64, 64, 4), np.uint8)
    placed[20:40, 20:40] = 200, 60, 60, 255
    placed[20:40, 20:30, :3] = 120, 40, 40
    hole = fill_box(Box(16, 16, 48, 48), (64, 64))
    blue = np.full((64, 64, 3), (40, 60, 200), np.uint8)
    matched = match_colours(placed, blue, hole)
    np.testing.assert_array_equal(matched[..., 3], placed[..., 3])
    mean = matched[20:40, 20:40, :3].mean(axis=(0, 1))
    assert mean[0] < 160
    assert mean[2] > 60
    assert matched[30, 35, 0] - matched[30, 25, 0] > 50
    own = np.full((64, 64, 3), (160, 50, 50), np.uint8)
    np.testing.assert_allclose(match_colours(placed, own, hole).astype(int), placed, atol=12)


def test_poisson_of_a_constant_object_takes_the_plates_colour() -> None:
    plate = np.full((64, 64, 3), 90, np.uint8)
    hole = fill_box(Box(16, 16, 48, 48), (64, 64))
    placed = place_object(np.full((32, 32, 4), 255, np.uint8), hole, None)
    image = clone_object(placed, plate, hole)  # no gradients inside: nothing but the rim's values remains
    np.testing.assert_allclose(image.astype(int), plate, atol=2)


def test_a_hole_at_the_border_is_cloned_too() -> None:
    plate = np.full((64, 64, 3), 90, np.uint8)
    reference = np.random.default_rng(0).integers(0, 256, (32, 32, 4)).astype(np.uint8) | np.uint8([0, 0, 0, 255])
    hole = fill_box(Box(32, 32, 64, 64), (64, 64))
    assert clone_object(place_object(reference, hole, None), plate, hole)[hole].std() > 20


def test_a_flow_that_has_learned_nothing_starts_from_the_paste(cases: list[Case]) -> None:
    """One rule for both: what the flow adds is what is measured beside the paste."""
    torch.set_num_threads(1)
    compositor = Compositor(build_model(choose_flow(PRESETS["tiny"], wanted=True), seed=0))
    for level in MASK_LEVELS:
        trials = [Trial(case, place, "0-20", level, 0) for place, case in enumerate(cases)]
        composites = compositor.composite_batch([build_request(trial, paper=False) for trial in trials])
        for trial, made in zip(trials, composites, strict=True):
            assert made.opacity is not None
            opacity = np.rint(made.opacity * 255).astype(np.uint8)
            iou = compute_outline_iou(opacity, place_object(trial.reference, trial.hole, level)[..., 3] > 127)
            assert iou is not None
            assert iou > 0.9, (trial.case.name, level)  # whole pixels on one side
