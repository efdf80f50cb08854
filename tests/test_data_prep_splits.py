"""Clusters of near-duplicates across the items of a source, the splits made of them, and the leak that is measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.frames.stage import run_extract_frames
from data_prep.ingest.stage import run_ingest
from data_prep.masks.stage import run_segment_objects
from data_prep.pairs.backgrounds import (
    Backgrounds,
    compute_changed_share,
    compute_differences,
    count_matches,
    find_features,
    shrink_background,
)
from data_prep.pairs.duplicates import Link, find_clusters, find_links, measure_leak
from data_prep.pairs.splits import assign_splits
from data_prep.pairs.stage import SPLITS_FILE, run_mine_pairs, select_views
from data_prep.pairs.views import ClipViews, choose_scenes, load_clip, spread_evenly
from imprint.core.errors import InputError
from imprint.core.params import MinePairs, Params, load_params
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, PairRecord, load_records
from tests.video_clips import draw_frame, write_video

PARAMS: MinePairs = load_params(Path(__file__).parents[1] / "params.yaml").mine_pairs
NUM_FRAMES = 14
TWINS = {("place", "stranger"), ("copy", "original"), ("object_a", "object_b")}  # the planted near-duplicates


def draw_clip(background: int, style: int, turn: float = 0.0, x: float = 40) -> list[np.ndarray]:
    return [draw_frame(background, [(46, x + k, turn + k / 5)], style=style) for k in range(NUM_FRAMES)]


@pytest.fixture(scope="module")
def planted(clip_params: Params, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """Project in which pairs were mined of eight clips of their own and three pairs of near-duplicates."""
    root = tmp_path_factory.mktemp("planted")
    source = root / "source"
    for number in range(8):
        write_video(source / f"own_{number}.mp4", draw_clip(10 + number, 10 + number))
    original = draw_clip(30, 3)
    write_video(source / "original.mp4", original)
    small = [cv2.resize(frame[4:-4, 4:-4], (64, 64), interpolation=cv2.INTER_AREA) for frame in original]
    write_video(source / "copy.mp4", small)
    write_video(source / "place.mp4", draw_clip(31, 4, x=30))
    write_video(source / "stranger.mp4", draw_clip(31, 5, x=52))
    write_video(source / "object_a.mp4", draw_clip(32, 6))
    write_video(source / "object_b.mp4", draw_clip(33, 6))
    ingest = clip_params.ingest.model_copy(update={"source": str(source)})
    mine = clip_params.mine_pairs.model_copy(update={"min_pairs_per_split": 1})
    params = clip_params.model_copy(update={"ingest": ingest, "mine_pairs": mine})
    for run in (run_ingest, run_extract_frames, run_segment_objects, run_mine_pairs):
        run(params, root)
    return root, params


def load_names(root: Path) -> dict[str, str]:
    return {clip.clip_id: Path(clip.path).stem for clip in load_records(root / "data/clips.parquet", ClipRecord)}


def load_views(root: Path) -> list[ClipViews]:
    frames: dict[str, dict[int, FrameRecord]] = {}
    for frame in load_records(root / "data/frames/index.parquet", FrameRecord):
        frames.setdefault(frame.clip_id, {})[frame.sample_index] = frame
    masks = load_records(root / "data/masks/index.parquet", MaskRecord)
    usable, _ = select_views(masks, PARAMS, dict.fromkeys(frames, "time"), frames)
    return [load_clip(clip_id, tracks, frames[clip_id], root) for clip_id, tracks in usable.items()]


# --- clusters -------------------------------------------------------------------------------------------------------


def test_copies_shared_backgrounds_and_shared_objects_form_clusters_and_nothing_leaks(planted):
    root, _ = planted
    names, found = load_names(root), json.loads((root / SPLITS_FILE).read_text())
    clusters = {tuple(sorted(names[clip_id] for clip_id in cluster)) for cluster in found["clusters"]}
    assert {cluster for cluster in clusters if len(cluster) > 1} == TWINS
    assert sum(map(len, clusters)) == len(names) == 14
    assert found["leak"]["share"] == 0.0
    assert found["leak"]["num_frames"] > 0
    splits = {pair.clip_id: pair.split for pair in load_records(root / "data/pairs.parquet", PairRecord)}
    assert all(len({splits[clip_id] for clip_id in cluster}) == 1 for cluster in found["clusters"])
    assert {name: split["clips"] for name, split in found["splits"].items()} == Counter(splits.values())


def test_what_is_shared_is_named(planted):
    root, _ = planted
    names = load_names(root)
    shared: dict[tuple[str, str], set[str]] = {}
    for link in json.loads((root / SPLITS_FILE).read_text())["links"]:
        first, second = sorted((names[link["first"]], names[link["second"]]))
        shared.setdefault((first, second), set()).add(link["shared"])
    assert "background" in shared["place", "stranger"]
    assert "object" not in shared["place", "stranger"]
    assert "object" in shared["copy", "original"], "cropped: frame and background are not where they were"
    assert shared["object_a", "object_b"] == {"object"}


def test_the_leak_is_seen_where_twins_lie_in_two_splits(planted):
    root, _ = planted
    names, clips = load_names(root), load_views(root)
    apart = {
        clip.clip_id: "test" if names[clip.clip_id] in ("copy", "place", "object_a") else "train" for clip in clips
    }
    leak = measure_leak(clips, apart, PARAMS.near_duplicates)
    of_test = [clip for clip in clips if apart[clip.clip_id] == "test"]
    assert leak["num_objects"] == sum(len(track.rows) for clip in of_test for track in clip.tracks)
    assert leak["leaking_objects"] > 0
    assert leak["leaking_backgrounds"] > 0
    assert leak["share"] >= leak["leaking_objects"] / leak["num_objects"]
    together = dict.fromkeys(apart, "train") | {clips[0].clip_id: "val"}
    assert measure_leak(clips, together, PARAMS.near_duplicates)["share"] == 0.0


def test_a_measure_at_0_is_not_looked_at(planted):
    limits = PARAMS.near_duplicates.model_copy(update={"object_change": 0.0})
    names = load_names(planted[0])
    pairs = {
        tuple(sorted((names[link.first], names[link.second]))) for link in find_links(load_views(planted[0]), limits)
    }
    assert ("object_a", "object_b") not in pairs
    assert ("place", "stranger") in pairs


def test_clusters_are_what_is_joined_directly_or_through_others():
    links = [Link("a", "c", "frame", 0.0), Link("c", "f", "object", 0.1), Link("d", "b", "place", 12.0)]
    assert find_clusters(list("fedcba"), links) == [["a", "c", "f"], ["b", "d"], ["e"]]


# --- backgrounds ----------------------------------------------------------------------------------------------------


def draw_place(seed: int, px: int = 300) -> np.ndarray:
    """Coloured ground with marks of many sizes, RGB uint8 [px, px, 3]."""
    rng = np.random.default_rng(seed)
    image = np.full((px, px, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(150):
        centre, colour = rng.integers(0, px, 2).tolist(), rng.integers(0, 256, 3).tolist()
        cv2.ellipse(image, centre, rng.integers(4, 18, 2).tolist(), float(rng.integers(180)), 0, 360, colour, -1)
    return image


def cut_view(image: np.ndarray, y: int, x: int, side: int, out_px: int) -> np.ndarray:
    return cv2.resize(image[y : y + side, x : x + side], (out_px, out_px), interpolation=cv2.INTER_AREA)


def stack_frames(images: list[np.ndarray], objects: list[np.ndarray]) -> Backgrounds:
    parts = [shrink_background(image, mask) for image, mask in zip(images, objects, strict=True)]
    return Backgrounds(*(np.stack(part) for part in zip(*parts, strict=True)))


def test_the_same_place_is_found_from_another_side_and_behind_another_object():
    place, none = draw_place(1), np.zeros((200, 200), bool)
    first, second, mask = cut_view(place, 10, 0, 220, 200), cut_view(place, 60, 50, 230, 200), none.copy()
    mask[60:140, 60:140] = True
    second[mask] = [250, 0, 0]
    assert (
        count_matches(find_features(first, none), find_features(second, mask))
        >= PARAMS.near_duplicates.background_matches
    )
    other = find_features(cut_view(draw_place(2), 10, 0, 220, 200), none)
    assert count_matches(find_features(first, none), other) < PARAMS.near_duplicates.background_matches
    everything = find_features(first, ~none)
    assert len(everything.points) == 0
    assert count_matches(everything, other) == 0


def test_differences_leave_the_objects_out_and_plain_grounds_have_no_spread():
    none = np.zeros((96, 96), bool)
    masks = [none.copy(), none.copy(), none]
    masks[0][10:40, 10:40], masks[1][50:80, 40:90] = True, True
    images = [draw_place(3, 96), draw_place(3, 96), np.full((96, 96, 3), 200, np.uint8)]
    images[0][masks[0]], images[1][masks[1]] = 255, 0
    frames = stack_frames(images, masks)
    difference, spread = compute_differences(frames, frames)
    assert difference[0, 1] < 1.5
    images[0][masks[0]] = 0
    np.testing.assert_array_equal(stack_frames(images, masks).colours, frames.colours)
    assert difference[0, 2] > PARAMS.near_duplicates.background_rms
    assert spread[0, 1] > 8.0 > spread[0, 2]
    full = stack_frames([images[0]], [~none])
    assert np.isinf(compute_differences(full, frames)[0]).all()


def test_a_camera_that_moves_changes_the_background_and_a_hand_a_part_of_it():
    place, none = draw_place(4), np.zeros((128, 128), bool)
    still = cut_view(place, 40, 40, 200, 128)
    hand = still.copy()
    hand[64:, :40] = 0
    frames = stack_frames([still, still, hand, cut_view(place, 40, 100, 200, 128)], [none] * 4)
    same, with_hand, moved = compute_changed_share(frames, np.array([[0, 1], [0, 2], [0, 3]]))
    assert same == 0.0
    assert 0.1 < with_hand < 0.25
    assert moved > PARAMS.video_max_background_change > with_hand


def test_scenes_are_spread_over_shots_and_limited():
    assert choose_scenes([0] * 9 + [4] * 2) == {0, 4, 8, 9, 10}
    assert len(choose_scenes(list(range(100)))) == 12
    assert spread_evenly(3, 8) == [0, 1, 2]


# --- splits ---------------------------------------------------------------------------------------------------------


def count_clips(splits: Mapping[str, str]) -> Counter[str]:
    return Counter(splits.values())


def test_splits_follow_seed_and_content_and_an_added_clip_moves_no_other_one():
    clusters = [[f"clip{number}"] for number in range(400)]
    splits = assign_splits(clusters, PARAMS)
    counts = count_clips(splits)
    assert sum(counts.values()) == 400
    assert 30 <= counts["val"] <= 72
    assert 30 <= counts["test"] <= 90
    assert splits == assign_splits(clusters[::-1], PARAMS)
    assert splits != assign_splits(clusters, PARAMS.model_copy(update={"seed": PARAMS.seed + 1}))
    for number in range(30):
        added = assign_splits([*clusters, [f"added{number}"]], PARAMS)
        assert {clip: split for clip, split in added.items() if clip in splits} == splits


def test_a_cluster_is_never_divided_and_one_too_large_is_trained_on():
    for seed in range(20):
        params = PARAMS.model_copy(update={"seed": seed})
        clusters = [[f"{size}.{number}.{k}" for k in range(size)] for size in (1, 2, 3) for number in range(10)]
        clusters.append([f"large{k}" for k in range(20)])
        splits = assign_splits(clusters, params)
        assert all(len({splits[clip] for clip in cluster}) == 1 for cluster in clusters)
        assert splits["large0"] == "train"
        counts = count_clips(splits)
        for name, share in params.split_share.items():
            assert 0.5 * share * 80 <= counts[name] <= 1.5 * share * 80


def test_few_clips_fill_test_and_val_first_and_too_few_are_an_error():
    for seed in range(20):
        counts = count_clips(assign_splits([[f"c{k}"] for k in range(6)], PARAMS.model_copy(update={"seed": seed})))
        assert counts == {"train": 2, "val": 2, "test": 2}
    with pytest.raises(InputError, match=r"4 clusters.*train 0, val 2, test 2; mine_pairs\.min_clips_per_split = 2"):
        assign_splits([["a"], ["b"], ["c"], ["d"]], PARAMS)
    with pytest.raises(InputError, match=r"1 clusters.*train 9, val 0, test 0"):
        assign_splits([list("abcdefghi")], PARAMS)
