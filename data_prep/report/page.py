"""The report page as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.report.changes import Changes
from data_prep.report.charts import build_histogram
from data_prep.report.dataset import KINDS, SPLITS, DataSet, list_distributions
from data_prep.report.pictures import LeftOut, Picture

MAX_CHANGED_ROWS = 60  # of one table
TITLES = {
    "area_share": "area of the object / frame",
    "track_frames": "frames per track",
    "sharpness": "sharpness of frames (variance of the Laplacian)",
    "mask_confidence": "confidence of masks",
    "multiview_view_change": "change of view, multiview pairs",
    "multiview_gap_frames": "gap in sampled frames, multiview pairs",
    "video_view_change": "change of view, video pairs",
    "video_gap_frames": "gap in sampled frames, video pairs",
}
STEP_TITLES = {
    "ingest": "ingest",
    "extract_frames": "extract frames",
    "segment_objects": "segment objects",
    "mine_pairs": "mine pairs",
    "pack_shards": "pack shards",
}
MEANINGS = {
    "unreadable": "no picture could be decoded",
    "too_short": "fewer frames than ingest.min_frames",
    "duplicate": "the same content as another item",
    "unused_licence": "licences.csv names it, but no item lies there",
    "blurred": "less sharp than min_sharpness",
    "near_duplicate": "too like the frame before",
    "undecodable": "frames that no reader could decode",
    "interrupted": "frames that the machine kept from being read: too little time, or killed",
    "over_max_frames": "frames after the first max_frames_per_clip",
    "too_small": "the object fills less than min_area_share of the frame",
    "too_large": "the object fills more than max_area_share of the frame",
    "in_pieces": "the largest piece is less than min_component_share of the object",
    "low_confidence": "the network is unsure about the object",
    "covered": "other objects of the frame lie over it",
    "short_track": "a track of fewer than min_track_frames frames",
    "in_doubt": "it may be two objects: tracks met, or one fell apart",
    "several_objects": "objects that touch are one mask, or may be, and cannot be split cleanly",
    "not_the_largest": "the photo's largest object is the one",
    "empty_mask": "the given mask holds no object",
    "border_contact": "too much of the outline lies on the frame's border",
    "no_second_view": "the only usable view of its track",
    "small_box": "the object is too small in its frame",
    "background_changed": "the background did not stay: no video pair",
    "large_video_target": "the object fills too much of the target frame",
    "large_single_target": "the object fills too much of its frame",
    "small_view_change": "two views that look too much alike for stage 1",
    "over_max_multiview": "more pairs than max_pairs_per_track",
    "over_max_video": "more pairs than max_pairs_per_track",
    "over_max_single": "more views than max_pairs_per_track",
    "over_max_multiview_of_clip": "more pairs than max_pairs_per_clip",
    "over_max_video_of_clip": "more pairs than max_pairs_per_clip",
    "over_max_single_of_clip": "more views than max_pairs_per_clip",
    "dropped_in_review": "a person has dropped it (review/decisions.csv)",
}
_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Step:
    """One row of the table of steps."""

    title: str
    kept: str
    left_out: Mapping[str, int]


def render_page(
    data: DataSet,
    metrics: dict[str, Any],
    *,
    tracks: Sequence[Picture],
    pairs: Mapping[str, Sequence[Picture]],
    left_out: Sequence[LeftOut],
    changes: Changes | None,
    origin: str,
) -> str:
    """The page refers to the pictures beside it by relative names. `changes` None: the first version."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"value": format_value, "group": lambda count: f"{count:,}"}
    distributions = list_distributions(data)
    return environment.from_string(_TEMPLATE.read_text()).render(
        metrics=metrics,
        sources=sorted({clip.source for clip in data.clips}),
        layouts=sorted({clip.layout for clip in data.clips}),
        steps=list_steps(metrics),
        kinds=KINDS,
        splits=SPLITS,
        tracks=tracks,
        pairs=pairs,
        left_out=left_out,
        meanings=MEANINGS,
        changes=changes,
        origin=origin,
        max_rows=MAX_CHANGED_ROWS,
        charts={
            TITLES[name]: (Markup(build_histogram(values)), _describe(values))
            for name, values in distributions.items()
            if values.size
        },
    )


def list_steps(metrics: dict[str, Any]) -> list[Step]:
    """What each step kept, and its ledger's rows by reason."""
    totals, left_out = metrics["totals"], metrics["left_out"]
    kept = {
        "ingest": f"{totals['clips']:,} clips",
        "extract_frames": f"{totals['frames']:,} frames",
        "segment_objects": f"{totals['masks']:,} masks in {totals['tracks']:,} tracks",
        "mine_pairs": f"{totals['pairs']:,} pairs of {totals['clips_with_pairs']:,} clips",
        "pack_shards": f"{totals['shard_views']:,} views in {totals['shards']:,} shards, {totals['shard_mb']:.1f} MB",
    }
    return [Step(STEP_TITLES[name], text, left_out.get(name, {})) for name, text in kept.items()]


def format_value(value: Any) -> str:
    """A count with commas; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _describe(values: np.ndarray) -> str:
    return f"{values.size:,} values, median {np.median(values):.3g}"
