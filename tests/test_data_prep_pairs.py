"""Stage `mine_pairs`: how views differ, which pairs are chosen, and the split by clip."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.pairs.mining import choose_spread, split_clips
from data_prep.pairs.stage import run_mine_pairs, select_views
from data_prep.pairs.views import compute_view_change
from imprint.core.errors import InputError
from imprint.core.params import MinePairs, Params, load_params
from imprint.core.prepare import crop_object
from imprint.core.records import MaskRecord, PairRecord, Rejection, load_records
from tests.video_clips import draw_frame

PARAMS: MinePairs = load_params(Path(__file__).parents[1] / "params.yaml").mine_pairs


def crop_thumbnail(turn: float, style: int = 0, gain: float = 1.0, y: float = 48, radius_px: int = 20) -> np.ndarray:
    image = draw_frame(0, [(y, 48, turn)], style=style, radius_px=radius_px)
    mask = np.ptp(image, axis=2) > 60
    return crop_object((image * gain).astype(np.uint8), mask, 32)


# --- the measure ----------------------------------------------------------------------------------------------------


def test_view_change_is_a_distance_in_0_1_that_is_0_for_the_same_view():
    views = np.stack([crop_thumbnail(turn) for turn in (0.0, 0.3, 1.0, 2.0)])
    change = compute_view_change(views)
    np.testing.assert_allclose(change, change.T, atol=1e-5)
    np.testing.assert_allclose(np.diag(change), 0.0, atol=1e-5)
    assert change.min() >= 0.0
    assert change.max() <= 1.0


def test_view_change_sees_a_turn_but_not_a_shift_a_distance_or_the_light():
    same = [
        crop_thumbnail(0.3),
        crop_thumbnail(0.3, y=40),
        crop_thumbnail(0.3, radius_px=27),
        crop_thumbnail(0.3, gain=0.6),
    ]
    turned = [crop_thumbnail(turn) for turn in (0.5, 0.8, 1.4)]
    change = compute_view_change(np.stack(same + turned))[0]
    assert max(change[2], change[3]) < 0.25
    assert change[1] < 0.1
    assert change[4] < change[5] < change[6]
    assert change[5] > 0.4


# --- choice ---------------------------------------------------------------------------------------------------------


def test_a_spread_choice_uses_all_views_evenly_and_repeats_itself():
    pairs = np.stack(np.triu_indices(12, k=1), axis=1)
    chosen = choose_spread(pairs, 18, np.random.default_rng(3))
    assert len(chosen) == 18
    assert len({frozenset(pair) for pair in chosen.tolist()}) == 18
    uses = Counter(chosen.ravel().tolist())
    assert len(uses) == 12
    assert max(uses.values()) <= 4
    assert (chosen[:, 0] > chosen[:, 1]).any()
    assert (chosen[:, 0] < chosen[:, 1]).any()
    np.testing.assert_array_equal(chosen, choose_spread(pairs, 18, np.random.default_rng(3)))
    assert len(choose_spread(pairs[:5], 18, np.random.default_rng(3))) == 5
    assert len(choose_spread(pairs[:0], 18, np.random.default_rng(3))) == 0


def test_pairs_keep_their_limits(prepared, clip_params: Params):
    section = clip_params.mine_pairs
    pairs = load_records(prepared / "data/pairs.parquet", PairRecord)
    masks = {
        (row.clip_id, row.track, row.sample_index): row
        for row in load_records(prepared / "data/masks/index.parquet", MaskRecord)
    }
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    for pair in pairs:
        ends = [masks[pair.clip_id, pair.track, index] for index in (pair.reference_index, pair.target_index)]
        assert max(end.border_contact for end in ends) <= section.max_border_contact
        assert pair.gap_frames == abs(pair.reference_index - pair.target_index)
        assert ends[0].shot == ends[1].shot
        if pair.kind == "single":
            assert pair.gap_frames == pair.view_change == 0
        if pair.kind == "multiview":
            assert pair.view_change >= section.min_view_change
        if pair.kind == "video":
            assert 0 < pair.gap_frames <= section.video_max_gap_frames
            assert pair.gap_s <= section.video_max_gap_s
    per_track = Counter((pair.clip_id, pair.track, pair.kind) for pair in pairs)
    assert all(count <= section.max_pairs_per_track[kind] for (_, _, kind), count in per_track.items())
    assert Counter(pair.kind for pair in pairs)["multiview"] > 200


def test_views_along_the_border_are_left_out_with_a_row(prepared):
    masks = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    first = [row for row in masks if row.clip_id == masks[0].clip_id]
    lonely = dataclasses.replace(first[0], track=9)
    rows = [dataclasses.replace(row, border_contact=0.2 if number < 3 else 0.1) for number, row in enumerate(first)]
    usable, rejections = select_views([*rows, lonely], PARAMS, {first[0].clip_id: "time"})
    assert usable == {first[0].clip_id: [rows[3:]]}
    assert [(row.item, row.reason) for row in rejections] == [
        *[(f"{row.clip_id}:{row.track}:{row.sample_index}", "border_contact") for row in rows[:3]],
        (f"{lonely.clip_id}:9:{lonely.sample_index}", "no_second_view"),
    ]


# --- split ----------------------------------------------------------------------------------------------------------


def test_no_clip_is_in_two_splits(prepared):
    pairs = load_records(prepared / "data/pairs.parquet", PairRecord)
    splits = {(pair.clip_id, pair.split) for pair in pairs}
    assert len(splits) == len({clip_id for clip_id, _ in splits})
    assert {split for _, split in splits} == {"train", "val", "test"}


def test_split_has_its_shares_and_follows_the_seed():
    clips = [f"clip{number}" for number in range(100)]
    splits = split_clips(clips, PARAMS)
    assert Counter(splits.values()) == {"train": 73, "test": 15, "val": 12}
    assert splits == split_clips(clips[::-1], PARAMS)
    assert splits != split_clips(clips, PARAMS.model_copy(update={"seed": 1}))
    kept = [clip for clip in clips if splits[clip] == split_clips([*clips, "another"], PARAMS)[clip]]
    assert len(kept) >= 96  # one more clip moves few of the others


def test_too_few_clips_or_pairs_end_in_one_line_with_counts_and_setting(prepared, tmp_path, clip_params):
    with pytest.raises(InputError, match=r"train 0, val 2, test 2; mine_pairs\.min_clips_per_split = 2 asks for more"):
        split_clips(["a", "b", "c", "d"], PARAMS)
    shutil.copytree(prepared / "data", tmp_path / "data")
    (tmp_path / "data/pairs.parquet").unlink()
    section = clip_params.mine_pairs.model_copy(update={"min_pairs_per_split": 500})
    params = clip_params.model_copy(update={"mine_pairs": section})
    with pytest.raises(
        InputError, match=r"multiview pairs per split: train \d+.*mine_pairs\.min_pairs_per_split = 500"
    ):
        run_mine_pairs(params, tmp_path)
    assert not (tmp_path / "data/pairs.parquet").exists()
    assert load_records(tmp_path / "data/ledgers/mine_pairs.parquet", Rejection)
