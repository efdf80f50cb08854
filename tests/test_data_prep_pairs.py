"""Stage `mine_pairs`: how views differ, which pairs are chosen and why others are not."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.pairs.mining import choose_pairs, choose_spread, draw_pairs, find_candidates, share_out
from data_prep.pairs.stage import keep_seen, run_mine_pairs, select_views
from data_prep.pairs.views import ClipViews, build_patterns, compute_view_change, load_clip
from data_prep.tars import read_tar, write_tar
from imprint.core.errors import InputError
from imprint.core.params import MinePairs, Params, load_params
from imprint.core.pixels import decode_image, encode_image
from imprint.core.prepare import crop_object
from imprint.core.records import FrameRecord, MaskRecord, PairRecord, Rejection, load_records
from tests.video_clips import draw_frame

PARAMS: MinePairs = load_params(Path(__file__).parents[1] / "params.yaml").mine_pairs


def crop_thumbnail(turn: float, style: int = 0, gain: float = 1.0, y: float = 48, radius_px: int = 20) -> np.ndarray:
    image = draw_frame(0, [(y, 48, turn)], style=style, radius_px=radius_px)
    mask = np.ptp(image, axis=2) > 60
    return crop_object((image * gain).astype(np.uint8), mask, 32)


def measure(thumbnails: np.ndarray) -> np.ndarray:
    patterns = build_patterns(thumbnails)
    return compute_view_change(patterns, patterns)


# --- the measure ----------------------------------------------------------------------------------------------------


def test_view_change_is_a_distance_in_0_1_that_is_0_for_the_same_view():
    views = np.stack([crop_thumbnail(turn) for turn in (0.0, 0.3, 1.0, 2.0)])
    change = measure(views)
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
    change = measure(np.stack(same + turned))[0]
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


def load_frames(root: Path) -> dict[str, dict[int, FrameRecord]]:
    frames: dict[str, dict[int, FrameRecord]] = {}
    for frame in load_records(root / "data/frames/index.parquet", FrameRecord):
        frames.setdefault(frame.clip_id, {})[frame.sample_index] = frame
    return frames


def load_first_clip(root: Path) -> ClipViews:
    """The first clip with a single object."""
    masks = load_records(root / "data/masks/index.parquet", MaskRecord)
    tracks = Counter({(row.clip_id, row.track): 1 for row in masks})
    alone = Counter(clip_id for clip_id, _ in tracks)
    clip_id = next(clip_id for clip_id, count in sorted(alone.items()) if count == 1)
    return load_clip(clip_id, [[row for row in masks if row.clip_id == clip_id]], load_frames(root)[clip_id], root)


def test_views_along_the_border_and_small_ones_are_left_out_with_a_row(prepared):
    masks = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    first = [row for row in masks if row.clip_id == masks[0].clip_id]
    lonely = dataclasses.replace(first[0], track=9)
    rows = [dataclasses.replace(row, border_contact=0.2 if number < 3 else 0.1) for number, row in enumerate(first)]
    rows[3] = dataclasses.replace(rows[3], box=(10, 10, 18, 19))
    clip_id = first[0].clip_id
    usable, rejections = select_views([*rows, lonely], PARAMS, {clip_id: "time"}, load_frames(prepared))
    assert usable == {clip_id: [rows[4:]]}
    assert [(row.item, row.reason) for row in rejections] == [
        *[(f"{clip_id}:{row.track}:{row.sample_index}", "border_contact") for row in rows[:3]],
        (f"{clip_id}:{rows[3].track}:{rows[3].sample_index}", "small_box"),
        (f"{clip_id}:9:{lonely.sample_index}", "no_second_view"),
    ]


def test_a_view_of_which_nothing_is_drawn_is_a_row_and_mining_goes_on(prepared, tmp_path, clip_params):
    shutil.copytree(prepared / "data", tmp_path / "data")
    (hidden, *_) = load_records(tmp_path / "data/masks/index.parquet", MaskRecord)
    tar = tmp_path / f"data/masks/{hidden.clip_id}.tar"
    members = read_tar(tar)
    ids = decode_image(members[hidden.member], hidden.member)[..., 0]
    members[hidden.member] = encode_image(np.where(ids == hidden.track, 0, ids).astype(np.uint8))
    write_tar(tar, members.items())
    run_mine_pairs(clip_params, tmp_path)
    ledger = load_records(tmp_path / "data/ledgers/mine_pairs.parquet", Rejection)
    lost = f"{hidden.clip_id}:{hidden.track}:{hidden.sample_index}"
    assert [row.item for row in ledger if row.reason == "empty_mask"] == [lost]
    pairs = [p for p in load_records(tmp_path / "data/pairs.parquet", PairRecord) if p.clip_id == hidden.clip_id]
    assert pairs
    assert hidden.sample_index not in {index for p in pairs for index in (p.reference_index, p.target_index)}


def test_a_video_of_which_one_view_is_drawn_makes_no_pair(prepared):
    clip = load_first_clip(prepared)
    (track,) = clip.tracks
    alone = dataclasses.replace(track, rows=track.rows[:1])
    lonely = dataclasses.replace(clip, tracks=[alone], unseen=track.rows[1:])
    reasons = ["empty_mask"] * (len(track.rows) - 1)
    for order, kept, told in (("time", [], [*reasons, "no_second_view"]), ("views", [alone], reasons)):
        left, rows = keep_seen(lonely, order)
        assert (left.tracks, [row.reason for row in rows]) == (kept, told)


def test_a_background_that_changed_makes_no_video_pair(prepared):
    clip = load_first_clip(prepared)
    (track,) = clip.tracks
    colours = clip.backgrounds.colours.copy()
    colours[5:] = 255.0 - colours[5:]
    turned = dataclasses.replace(clip, backgrounds=dataclasses.replace(clip.backgrounds, colours=colours))
    whole, broken = (find_candidates(track, of, PARAMS) for of in (clip, turned))
    across = [(candidates.pairs["video"] < 5).sum(axis=1) == 1 for candidates in (whole, broken)]
    assert across[0].any()
    assert not across[1].any()
    lost = len(whole.pairs["video"]) - len(broken.pairs["video"])
    reasons = {row.reason: row.detail for row in broken.rejections}
    assert reasons["background_changed"] == f"{lost} of {len(whole.pairs['video'])} pairs"
    np.testing.assert_array_equal(whole.pairs["multiview"], broken.pairs["multiview"])


def test_a_large_view_is_a_reference_but_no_target_of_stage_2(prepared):
    clip = load_first_clip(prepared)
    (track,) = clip.tracks
    shares = track.box_shares.copy()
    shares[::2] = 0.9
    track = dataclasses.replace(track, box_shares=shares)
    candidates = find_candidates(track, clip, PARAMS)
    assert set(candidates.pairs["single"].ravel().tolist()) == set(range(1, len(shares), 2))
    large = {track.rows[place].sample_index for place in range(0, len(shares), 2)}
    video = draw_pairs(candidates, "video", 1000, split="train", seed=0)
    assert len(video) == len(candidates.pairs["video"])
    assert not {pair.target_index for pair in video} & large
    assert {pair.reference_index for pair in video} & large
    reasons = {row.reason for row in candidates.rejections}
    assert reasons >= {"large_video_target", "large_single_target"}


def test_a_clips_pairs_are_shared_out_evenly_among_its_tracks(prepared):
    assert share_out([60, 5, 60], 65) == [30, 5, 30]
    assert share_out([3, 4], 100) == [3, 4]
    assert share_out([], 10) == []
    for limit in range(40):
        shares = share_out([12, 0, 7, 20], limit)
        assert sum(shares) == min(limit, 39)
    clip = load_first_clip(prepared)
    twice = dataclasses.replace(clip, tracks=[*clip.tracks, dataclasses.replace(clip.tracks[0])])
    params = PARAMS.model_copy(update={"max_pairs_per_clip": {"multiview": 11, "video": 4, "single": 6}})
    pairs, rejections = choose_pairs(twice, "train", params=params, order="time")
    assert Counter(pair.kind for pair in pairs) == params.max_pairs_per_clip
    assert {row.reason for row in rejections} >= {"over_max_multiview_of_clip", "over_max_video_of_clip"}


def test_too_few_pairs_end_in_one_line_with_counts_and_setting(prepared, tmp_path, clip_params):
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
