"""What the benchmark of tracks counts, on masks whose figures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo.benchmark_tracks import ClipResult, View, compare_mask, count_recall, describe_pairs, describe_tracks
from imprint.core.params import load_params
from imprint.core.records import FrameRecord, MaskRecord, PairRecord

PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")


def make_row(index: int) -> MaskRecord:
    fixed = {"box": (0, 0, 1, 1), "area_share": 0.1, "confidence": 1.0, "boundary_confidence": 1.0}
    place = {"clip_id": "c", "track": 1, "sample_index": index, "time_s": index / 6, "shot": 0}
    return MaskRecord(**place, **fixed, border_contact=0.0, member="")


def make_frame(index: int) -> FrameRecord:
    fixed = {"sharpness": 1.0, "phash": "0", "height_px": 10, "width_px": 30, "member": ""}
    return FrameRecord(clip_id="c", sample_index=index, source_index=index, time_s=index / 6, shot=0, **fixed)


def make_result(widths: list[int], pairs: list[tuple[int, int]]) -> ClipResult:
    """Object 1 in columns 0-9, object 2 in 10-19, nothing in 20-29; a mask of some width per frame."""
    truth = np.repeat(np.repeat([1, 2, 0], 10)[None], 10, axis=0).astype(np.uint8)
    masks = [
        compare_mask(make_row(k), np.arange(30)[None].repeat(10, 0) < width, truth) for k, width in enumerate(widths)
    ]
    views = [View(number, make_frame(index)) for index in range(len(widths)) for number in (1, 2)]
    records = [
        PairRecord(
            pair_id="", kind="video", split="train", clip_id="c", track=1,
            reference_index=a, target_index=b, gap_frames=b - a, gap_s=0.0, view_change=0.0,
        )
        for a, b in pairs
    ]  # fmt: skip
    return ClipResult("multi", masks, views, records)


@pytest.mark.parametrize(("width", "right", "iou"), [(10, 1, 1.0), (11, 1, 10 / 11), (12, 0, 10 / 12), (5, 1, 0.5)])
def test_a_mask_with_more_than_a_tenth_of_another_object_is_wrong(width, right, iou):
    mask = make_result([width], []).masks[0]
    assert (mask.main, mask.right_for, mask.iou) == (1, right, pytest.approx(iou))


def test_purity_precision_and_recall_of_a_track_with_one_bad_mask():
    clip = make_result([10, 10, 20], [(0, 1), (0, 2)])
    assert describe_tracks([clip])["track purity, pooled"] == "0.7500"  # 30 of 40 columns
    assert describe_pairs([clip])["pair precision"] == "0.5000 (1/2)"
    counts = count_recall(clip, PARAMS)
    assert (counts["views"], counts["views found"]) == (6, 2)
    assert (counts["near"], counts["near found"]) == (6, 1)
    assert (counts["mined"], counts["mined found"]) == (6, 1)
