"""Objects that touch: what the separating network is asked, and what becomes of a track by its answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.masks.instances import Instance, measure_given
from data_prep.masks.separation import REASON, Footage, find_deepest, link_apart, smooth, split_mask
from data_prep.masks.tracking import Track
from demo.benchmark_segmenter import read_frames
from demo.separator_data import build_sample, list_blobs, list_parts, wear_mask
from demo.unpack import ARCHIVE, unpack
from imprint.core.params import SegmentObjects, load_params
from imprint.core.pixels import load_image
from imprint.segmentation import build_separator
from imprint.segmentation.separator import SEPARATOR_PATH, SIDE_PX, Place, Question, build_planes, find_window
from tests.test_data_prep_masks import make_frames

PARAMS: SegmentObjects = load_params(Path(__file__).parents[1] / "params.yaml").segment_objects
RED, BLUE, GREY = (220, 30, 30), (30, 40, 220), (128, 128, 128)
HW = (80, 100)
LEFT, RIGHT = (slice(20, 60), slice(10, 40)), (slice(20, 60), slice(40, 80))


def answer_by_colour(questions: Sequence[Question]) -> list[np.ndarray]:
    """What of each mask has the place's colour.

    Where the picture's corner is not grey, all of the mask instead, as surely as the corner is bright.
    """
    return [_answer_one(question.image, question.mask, question.place) for question in questions]


def _answer_one(image: np.ndarray, mask: np.ndarray, place: Place) -> np.ndarray:
    if tuple(image[0, 0]) != GREY:
        return mask.astype(np.float32) * float(image[0, 0, 0]) / 255
    return (mask & (image == image[place]).all(axis=-1)).astype(np.float32)


def draw_pair(corner: tuple[int, int, int] = GREY) -> np.ndarray:
    """A red object that touches a blue one."""
    image = np.full((*HW, 3), 128, np.uint8)
    image[LEFT], image[RIGHT], image[0, 0] = RED, BLUE, corner
    return image


def measure_blob(image: np.ndarray) -> Instance:
    mask = (image != 128).any(axis=-1)
    mask[0, 0] = False
    instance = measure_given(image, mask, PARAMS)
    assert isinstance(instance, Instance)
    return instance


def link(images: list[np.ndarray]) -> tuple[list[Track], list[str]]:
    clip = Footage(make_frames(len(images)), images.__getitem__, answer_by_colour, PARAMS)
    tracks, rejections = link_apart(clip, [[measure_blob(image)] for image in images])
    assert {row.reason for row in rejections} <= {REASON}
    return tracks, [f"{row.item} {row.detail}" for row in rejections]


# --- what becomes of a track ----------------------------------------------------------------------------------------


def test_two_objects_in_one_blob_become_two_tracks():
    tracks, rejections = link([draw_pair()] * 8)
    assert [track.frames for track in tracks] == [list(range(8))] * 2
    assert [track.instances[0].area_px for track in tracks] == [1200, 1600]
    assert not rejections


def test_one_object_of_any_shape_stays_as_it_is():
    image = draw_pair()
    image[RIGHT] = RED
    tracks, rejections = link([image] * 8)
    assert [track.frames for track in tracks] == [list(range(8))]
    assert tracks[0].instances[0].area_px == 2800
    assert not rejections


def test_a_single_wrong_answer_splits_nothing():
    one = draw_pair((255, 255, 255))
    tracks, rejections = link([one, one, one, draw_pair((0, 0, 0)), one, one, one, one])
    assert [track.frames for track in tracks] == [list(range(8))]
    assert not rejections


def test_what_cannot_be_split_is_left_out_with_a_reason():
    """In two frames the network sees no second object: the shot says that there is one."""
    images = [draw_pair()] * 3 + [draw_pair((255, 255, 255))] * 2 + [draw_pair()] * 4
    tracks, rejections = link(images)
    assert sorted({position for track in tracks for position in track.frames}) == [0, 1, 2, 5, 6, 7, 8]
    assert rejections == [f"c:{k} no clean split, box 20 10 60 80" for k in (3, 4)]


def test_a_median_follows_its_neighbours():
    assert smooth([0, 0, 9, 0, 0, 9, 9, 9]) == [0, 0, 0, 0, 9, 9, 9, 9]
    assert smooth([3]) == [3]


def test_a_split_shares_all_pixels_out():
    image = draw_pair()
    mask = (image != 128).any(axis=-1)
    parts = split_mask(image, mask, answer_by_colour)
    assert (np.sum(parts, axis=0) == mask).all()
    assert split_mask(image, mask & (image[..., 0] == RED[0]), answer_by_colour) == []


# --- the network and its questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (40, 60, 80, 100), (10, 10, 14, 90)], ids=str)
def test_a_window_shows_the_mask_and_puts_it_back(box):
    mask = np.zeros(HW, bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    window = find_window(mask)
    cut = window.cut(mask.astype(np.uint8) * 255, 0)
    assert cut.shape == (SIDE_PX, SIDE_PX)
    back = window.put_back(cut.astype(np.float32) / 255, HW) >= 0.5
    assert (back & mask).sum() >= 0.9 * (back | mask).sum()
    y, x = window.locate(find_deepest(mask))
    assert cut[round(y), round(x)] > 127


def test_the_planes_mark_the_place():
    planes = build_planes(
        np.full((1, SIDE_PX, SIDE_PX, 3), 255, np.uint8),
        np.full((1, SIDE_PX, SIDE_PX), 255, np.uint8),
        np.array([[7, 50]], np.float32),
    )
    assert planes[0, :4].min() == planes[0, :5].max() == 1
    assert np.unravel_index(planes[0, 4].argmax(), (SIDE_PX, SIDE_PX)) == (7, 50)
    assert planes[0, 5, 7, 50] == 0


def test_only_the_shipped_network_has_a_separator():
    separator = build_separator(PARAMS)
    assert separator is not None
    again = build_separator(PARAMS)
    assert again is not None
    assert again.session is separator.session
    assert build_separator(PARAMS.model_copy(update={"model": "u2net"})) is None
    assert SEPARATOR_PATH.stat().st_size < 2_000_000


def test_the_shipped_separator_knows_the_objects_of_the_demo(tmp_path):
    """Clips that it was not trained on: one frame of each, its exact masks as blobs."""
    separator = build_separator(PARAMS)
    assert separator is not None
    shares: dict[bool, list[float]] = {True: [], False: []}
    unpack(ARCHIVE, tmp_path / "demo")
    for clip in json.loads((tmp_path / "demo/clips.json").read_text()):
        labels = load_image(tmp_path / f"demo/masks/{clip['name']}.png")[: clip["size_px"], :, 0]
        frame = read_frames(tmp_path / f"demo/clips/{clip['name']}.mp4")[0]
        for blob in list_blobs(labels):
            if blob.sum() >= 0.01 * blob.size:
                (answer,) = separator.answer([Question(frame, blob, find_deepest(blob))])
                assert not answer[~blob].any()
                shares[len(list_parts(labels, blob)) > 1].append(float(1 - answer[blob].mean()))
    assert np.median(shares[False]) < PARAMS.touching.max_foreign_share < np.median(shares[True])


def test_importing_the_questions_loads_no_runtime():
    code = "import sys, imprint.segmentation.separator; print({'rembg', 'onnxruntime'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# --- training questions ---------------------------------------------------------------------------------------------


def test_a_training_answer_is_the_object_at_the_place():
    labels = np.zeros((128, 128), np.uint8)
    labels[30:90, 20:60], labels[30:90, 60:100], labels[5:15, 5:15] = 1, 2, 3
    (group,) = [blob for blob in list_blobs(labels) if len(list_parts(labels, blob)) > 1]
    assert list_parts(labels, group) == [1, 2]
    image = np.dstack([labels * 100] * 3)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sample = build_sample(image, labels, wear_mask(group, rng), rng)
        y, x = sample.place.round().astype(int)
        assert sample.answer[y, x] == 255
        half = slice(0, SIDE_PX // 2 - 3) if x < SIDE_PX // 2 else slice(SIDE_PX // 2 + 3, None)
        assert (sample.answer[:, half] == sample.mask[:, half]).mean() > 0.99
        assert 0.3 < (sample.answer > 127).sum() / (sample.mask > 127).sum() < 0.7
