"""Stage `segment_objects`: clean masks, and tracks that end rather than join two objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.masks.instances import (
    Instance,
    compare_histograms,
    compute_histogram,
    fill_small_holes,
    find_instances,
)
from data_prep.masks.stage import draw_tracks
from data_prep.masks.tracking import Track, draw_instance, link_tracks
from data_prep.tars import read_tar
from imprint.core.geometry import Box, box_from_mask, compute_border_contact
from imprint.core.params import SegmentObjects, load_params
from imprint.core.pixels import decode_image
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, Rejection, get_box, load_records

PARAMS: SegmentObjects = load_params(Path(__file__).parents[1] / "params.yaml").segment_objects
RED, BLUE = (220, 30, 30), (30, 40, 220)
HW = (80, 100)


def draw_objects(*objects: tuple[Box, tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Grey image with filled boxes, and the probability that is 0.95 in them."""
    image, probability = np.full((*HW, 3), 128, np.uint8), np.full(HW, 0.02, np.float32)
    for box, colour in objects:
        image[box.slices], probability[box.slices] = colour, 0.95
    return image, probability


def find(*objects: tuple[Box, tuple[int, int, int]]) -> list[Instance]:
    return find_instances(*draw_objects(*objects), PARAMS)[0]


def square(y0: int, x0: int, side: int = 20) -> Box:
    return Box(y0, x0, y0 + side, x0 + side)


def make_frames(count: int, shots: list[int] | None = None, missing: tuple[int, ...] = ()) -> list[FrameRecord]:
    return [
        FrameRecord(
            clip_id="c",
            sample_index=index,
            source_index=index,
            time_s=index / 6,
            shot=shots[index] if shots else 0,
            sharpness=100.0,
            phash="0" * 16,
            height_px=HW[0],
            width_px=HW[1],
            member=f"{index:06d}.jpg",
        )
        for index in range(count)
        if index not in missing
    ]


def link(found: list[list[Instance]], **frame_options: object) -> list[tuple[list[int], bool]]:
    frames = make_frames(len(found), **frame_options)
    kept = [found[frame.sample_index] for frame in frames]
    tracks = link_tracks(frames, kept, PARAMS.min_link_iou)
    return [([frames[position].sample_index for position in track.frames], track.doubtful) for track in tracks]


# --- objects of one frame -------------------------------------------------------------------------------------------


def test_two_objects_and_their_measures():
    boxes = [square(10, 10), Box(40, 60, 80, 90)]
    instances = find((boxes[0], RED), (boxes[1], BLUE))
    assert [instance.box for instance in instances] == boxes
    assert [instance.area_px for instance in instances] == [400, 1200]
    assert instances[0].confidence == pytest.approx(0.95)
    assert instances[0].boundary_confidence == 1.0
    assert [instance.border_contact for instance in instances] == [0.0, pytest.approx(30 / 140)]
    assert compare_histograms(instances[0].histogram, instances[1].histogram) < 0.5


@pytest.mark.parametrize(
    ("boxes", "level", "reason"),
    [
        ([square(10, 10, 5)], 0.95, "too_small"),
        ([Box(0, 0, 80, 90)], 0.95, "too_large"),
        ([square(10, 10), square(10, 31)], 0.95, "in_pieces"),
        ([square(10, 10)], 0.55, "low_confidence"),
    ],
)
def test_objects_are_rejected_with_a_reason(boxes, level, reason):
    image, probability = draw_objects(*[(box, RED) for box in boxes])
    instances, rejected = find_instances(image, np.minimum(probability, level), PARAMS)
    assert instances == []
    whole = Box(min(b.y0 for b in boxes), min(b.x0 for b in boxes), max(b.y1 for b in boxes), max(b.x1 for b in boxes))
    assert rejected == [(reason, whole)]


def test_small_holes_are_filled_and_large_or_open_ones_are_not():
    mask = np.zeros(HW, bool)
    mask[10:50, 10:50] = True
    small, large, open_one = Box(15, 15, 18, 18), Box(25, 25, 40, 40), Box(10, 45, 20, 50)
    for box in (small, large, open_one):
        mask[box.slices] = False
    filled = fill_small_holes(mask, 0.05)
    assert filled[small.slices].all()
    assert not filled[large.slices].any()
    assert not filled[open_one.slices].any()


@pytest.mark.parametrize("side", [12, 6])
def test_a_hole_is_not_filled_where_another_object_lies(side):
    """A speck that is none is filled with the rest, as before."""
    ring, inner = Box(2, 2, 78, 98), Box(30, 40, 30 + side, 40 + side)
    image, probability = draw_objects((ring, RED))
    hole = Box(inner.y0 - 3, inner.x0 - 3, inner.y1 + 3, inner.x1 + 3)
    probability[hole.slices] = 0.02
    image[inner.slices], probability[inner.slices] = BLUE, 0.95
    params = PARAMS.model_copy(update={"max_area_share": 0.95})
    instances, rejected = find_instances(image, probability, params)
    drawn = np.sum([draw_instance(instance, HW) for instance in instances], axis=0)
    assert drawn.max() == 1
    assert drawn[ring.slices].all()
    assert [instance.area_px for instance in instances][1:] == ([side**2] if side == 12 else [])
    assert [reason for reason, _ in rejected] == ([] if side == 12 else ["too_small"])


def build_instance(box: Box, colour: tuple[int, int, int] = RED) -> Instance:
    (instance,) = find((box, colour))
    return instance


def test_what_several_objects_claim_is_drawn_once_and_told_as_it_is_drawn():
    """The smaller lies in front. The rows are those of the picture: mining reads both."""
    large, small = build_instance(Box(10, 10, 60, 60)), build_instance(square(50, 50), BLUE)
    under = build_instance(Box(50, 50, 71, 71))
    for order in ([large, small, under], [under, small, large]):
        tracks = {number: Track([0], [instance]) for number, instance in enumerate(order, start=1)}
        members, rows, rejections = draw_tracks(tracks, make_frames(1), PARAMS)
        ids = decode_image(members[0][1], "mask")[..., 0]
        assert [(row.reason, row.item) for row in rejections] == [("covered", "c:0")]
        assert sorted(np.unique(ids)) == [0, *sorted(row.track for row in rows)]
        for row in rows:
            assert get_box(row) == box_from_mask(ids == row.track)
            assert row.area_share == pytest.approx((ids == row.track).mean())
            assert row.border_contact == compute_border_contact(get_box(row), HW)
        assert sorted(int((ids == row.track).sum()) for row in rows) == [400, 2400]


def test_an_object_that_others_hide_wholly_leaves_no_member():
    first, second = build_instance(square(20, 20)), build_instance(square(20, 20), BLUE)
    members, rows, rejections = draw_tracks({1: Track([0], [first]), 2: Track([0], [second])}, make_frames(1), PARAMS)
    assert [row.track for row in rows] == [2]
    assert [(row.reason, row.detail.partition(",")[0]) for row in rejections] == [("covered", "track 1")]
    assert decode_image(members[0][1], "mask")[..., 0].max() == 2


def test_border_contact_counts_all_sides():
    assert compute_border_contact(Box(0, 0, 10, 10), (10, 10)) == 1.0
    assert compute_border_contact(Box(0, 2, 10, 8), (20, 20)) == pytest.approx(6 / 32)


def test_a_histogram_forgives_light_but_not_another_colour():
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal((200, 60, 60), 20, (500, 3)), 0, 255).astype(np.uint8)
    darker, other = (pixels * 0.9).astype(np.uint8), pixels[:, ::-1].copy()
    reference = compute_histogram(pixels)
    assert reference.sum() == pytest.approx(1.0)
    assert (
        compare_histograms(reference, compute_histogram(darker))
        > 0.8
        > compare_histograms(reference, compute_histogram(other))
    )


def test_a_drawn_instance_moves_and_is_cut_at_the_border():
    rng = np.random.default_rng(1)
    for _ in range(50):
        y, x = (int(value) for value in rng.integers(0, 50, 2))
        dy, dx = (int(value) for value in rng.integers(-60, 61, 2))
        instance = find((Box(y, x, y + 20, x + 30), RED))[0]
        padded = np.zeros((HW[0] + 200, HW[1] + 200), bool)
        padded[y + 100 + dy : y + 120 + dy, x + 100 + dx : x + 130 + dx] = True
        np.testing.assert_array_equal(
            draw_instance(instance, HW, (dy, dx)), padded[100 : 100 + HW[0], 100 : 100 + HW[1]]
        )


# --- tracks ---------------------------------------------------------------------------------------------------------


def test_a_moving_object_is_one_track():
    assert link([find((square(20, 5 + 7 * k), RED)) for k in range(8)]) == [(list(range(8)), False)]


def test_a_fast_object_is_followed_by_its_speed():
    columns = [4, 10, 22, 37, 52, 67]  # 15 px per frame: the 20 px wide masks overlap by too little
    assert link([find((square(20, x), RED)) for x in columns]) == [(list(range(6)), False)]


def test_a_track_ends_at_a_cut():
    found = [find((square(20, 30), RED)) for _ in range(6)]
    assert link(found, shots=[0, 0, 0, 1, 1, 1]) == [([0, 1, 2], False), ([3, 4, 5], False)]


def test_a_track_bridges_one_missing_frame_and_ends_at_two():
    found = [find((square(20, 30), RED)) for _ in range(9)]
    assert link(found, missing=(2, 5, 6)) == [([0, 1, 3, 4], False), ([7, 8], False)]


def test_a_track_ends_where_the_colours_change():
    found = [find((square(20, 30), RED if k < 3 else BLUE)) for k in range(6)]
    assert link(found) == [([0, 1, 2], False), ([3, 4, 5], False)]


def test_twins_that_merge_end_both_tracks_and_the_blob_is_in_doubt():
    gaps = [30, 25, 18, 8, 0, -6, 0, 8, 18, 25]
    found = [find((square(20, 30 - g // 2), RED), (square(20, 50 + g // 2), RED)) for g in gaps]
    assert [len(instances) for instances in found] == [2, 2, 2, 2, 1, 1, 1, 2, 2, 2]
    tracks = link(found)
    assert tracks == [
        ([0, 1, 2, 3], False),
        ([0, 1, 2, 3], False),
        ([4, 5, 6], True),
        ([7, 8, 9], False),
        ([7, 8, 9], False),
    ]


def test_an_object_that_falls_apart_was_in_doubt_all_the_time():
    found = [find((square(20, 30), RED), (square(20, 50), RED))] * 3
    found += [find((square(20, 26), RED), (square(20, 54), RED))] * 3
    assert link(found) == [([0, 1, 2], True), ([3, 4, 5], False), ([3, 4, 5], False)]


def test_an_object_that_stops_short_of_another_loses_no_track():
    columns = [80, 72, 64, 64, 64]  # at its speed it would cover a fifth of the other one in the fourth frame
    found = [find((square(20, 40), RED), (square(20, x), BLUE)) for x in columns]
    assert link(found) == [(list(range(5)), False), (list(range(5)), False)]


def test_a_track_with_two_partners_as_good_ends():
    halves = Box(24, 30, 39, 50), Box(42, 30, 57, 50)
    found = [find((square(30, 30), RED))] * 3 + [find(*((half, RED) for half in halves))] * 3
    assert [frames for frames, _ in link(found)] == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_an_object_that_takes_a_neighbours_place_is_in_doubt():
    small = Box(20, 63, 40, 68)  # a quarter of its neighbour: joined, the two have grown by less than a sudden growth
    found = [find((square(20, 40), RED), (small, RED))] * 3 + [find((Box(20, 40, 40, 65), RED))] * 3
    tracks = link(found)
    assert ([3, 4, 5], True) in tracks
    assert all(max(frames) == 2 for frames, doubtful in tracks if not doubtful)


def test_a_sudden_growth_is_in_doubt():
    found = [find((square(20, 30), RED))] * 3 + [find((Box(20, 30, 40, 70), RED))] * 3
    assert link(found) == [([0, 1, 2], False), ([3, 4, 5], True)]


# --- the stage ------------------------------------------------------------------------------------------------------


def test_masks_are_members_whose_grey_is_the_track(prepared):
    rows = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    assert rows == sorted(rows, key=lambda row: (row.clip_id, row.sample_index, row.track))
    for clip_id in {row.clip_id for row in rows}:
        members = read_tar(prepared / f"data/masks/{clip_id}.tar")
        of_clip = [row for row in rows if row.clip_id == clip_id]
        assert set(members) == {row.member for row in of_clip}
        for row in of_clip:
            mask = decode_image(members[row.member], row.member)[..., 0] == row.track
            assert box_from_mask(mask) == get_box(row)
            assert mask.mean() == pytest.approx(row.area_share)


def test_tracks_of_the_clips(prepared):
    """One track per turning object; two where there is a cut; twins never share one."""
    names = {clip.clip_id: Path(clip.path).stem for clip in load_records(prepared / "data/clips.parquet", ClipRecord)}
    rows = load_records(prepared / "data/masks/index.parquet", MaskRecord)
    tracks: dict[str, dict[int, list[MaskRecord]]] = {}
    for row in rows:
        tracks.setdefault(names[row.clip_id], {}).setdefault(row.track, []).append(row)
    assert {name: len(found) for name, found in tracks.items() if name != "twins"} == {
        **{f"turning_{seed}": 1 for seed in range(6)},
        "cut": 2,
    }
    assert [{row.shot for row in track} for track in tracks["cut"].values()] == [{0}, {1}]
    assert len(tracks["twins"]) == 4
    for track in tracks["twins"].values():  # the upper twin moves right, the lower one left
        centres = [(row.box[0] + row.box[2]) / 2 for row in track]
        assert max(centres) - min(centres) < 3
    reasons = {row.reason for row in load_records(prepared / "data/ledgers/segment_objects.parquet", Rejection)}
    assert "in_doubt" in reasons
