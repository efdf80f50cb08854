"""Stage `mine_pairs`: pairs of views of one object, capped per track and clip, split by clusters of near-duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_prep.decisions import drop_reviewed
from data_prep.ledger import check_share, print_counts, save_ledger
from data_prep.pairs.duplicates import find_clusters, find_links, measure_leak
from data_prep.pairs.mining import KINDS_OF_ORDER, choose_pairs
from data_prep.pairs.splits import SPLITS, STAGE, assign_splits, check_counts
from data_prep.pairs.views import ClipViews, compute_box_share, load_clip
from imprint.core.files import write_json_atomic
from imprint.core.params import MinePairs, Params
from imprint.core.progress import track
from imprint.core.records import (
    ClipRecord,
    FrameRecord,
    MaskRecord,
    Order,
    PairRecord,
    Rejection,
    Split,
    load_records,
    save_records,
)
from imprint.core.stage import open_stage

CLIPS, FRAMES, MASKS, OUT = (
    Path("data/clips.parquet"),
    Path("data/frames"),
    Path("data/masks"),
    Path("data/pairs.parquet"),
)
SPLITS_FILE = Path("data/ledgers/mine_pairs.splits.json")  # clusters, links, counts and the leak


def run_mine_pairs(params: Params, root: Path = Path(".")) -> None:
    """Write `data/pairs.parquet`, the splits and the ledger. `InputError` if a split has too few clips or pairs."""
    section = params.mine_pairs
    open_stage(STAGE, section, [CLIPS, FRAMES, MASKS], __name__, root)
    orders: dict[str, Order] = {clip.clip_id: clip.order for clip in load_records(root / CLIPS, ClipRecord)}
    frames: dict[str, dict[int, FrameRecord]] = {}
    for frame in load_records(root / FRAMES / "index.parquet", FrameRecord):
        frames.setdefault(frame.clip_id, {})[frame.sample_index] = frame
    masks = load_records(root / MASKS / "index.parquet", MaskRecord)
    usable, rejections = select_views(masks, section, orders, frames)
    save_ledger(STAGE, rejections, root)
    check_share(STAGE, "views", len(rejections), len(masks) - len(rejections), section.max_rejected_share)
    clips = []
    for clip_id, tracks in track(usable.items(), "mine_pairs: clips", len(usable)):
        clip, unseen = keep_seen(load_clip(clip_id, tracks, frames[clip_id], root), orders[clip_id])
        clips += [clip] if clip.tracks else []
        rejections += unseen
    splits = split_clips(clips, section, root)
    pairs: list[PairRecord] = []
    for clip in clips:
        chosen, left_out = choose_pairs(clip, splits[clip.clip_id], params=section, order=orders[clip.clip_id])
        pairs += chosen
        rejections += left_out
    pairs, dropped = drop_reviewed(pairs, masks, root)
    rejections += dropped
    save_ledger(STAGE, rejections, root)
    print_counts(STAGE, f"{len(pairs)} pairs of {len(clips)} clips ({describe_counts(pairs)})", rejections)
    possible = {kind for clip in clips for kind in KINDS_OF_ORDER[orders[clip.clip_id]]}
    for kind in [kind for kind, limit in section.max_pairs_per_track.items() if limit and kind in possible]:
        counts: Counter[Split] = Counter(pair.split for pair in pairs if pair.kind == kind)
        check_counts(f"{kind} pairs", counts, section.min_pairs_per_split, "min_pairs_per_split")
    save_records(root / OUT, PairRecord, sorted(pairs, key=_sort_key))


def split_clips(clips: Sequence[ClipViews], params: MinePairs, root: Path) -> dict[str, Split]:
    """Split of each clip by clusters of near-duplicates, written to `SPLITS_FILE` with why and what leaks."""
    links = find_links(clips, params.near_duplicates)
    clusters = find_clusters([clip.clip_id for clip in clips], links)
    record: dict[str, Any] = {"clusters": clusters, "links": [asdict(link) for link in links]}
    write_json_atomic(root / SPLITS_FILE, record)  # where the clips do not suffice, it says why
    splits = assign_splits(clusters, params)
    counts = Counter(splits.values())
    record["splits"] = {
        name: {"clips": counts[name], "clusters": sum(splits[cluster[0]] == name for cluster in clusters)}
        for name in SPLITS
    }
    record["leak"] = measure_leak(clips, splits, params.near_duplicates)
    write_json_atomic(root / SPLITS_FILE, record)
    return splits


def select_views(
    masks: Sequence[MaskRecord],
    params: MinePairs,
    orders: Mapping[str, Order],
    frames: Mapping[str, Mapping[int, FrameRecord]],
) -> tuple[dict[str, list[list[MaskRecord]]], list[Rejection]]:
    """Clip => its tracks, each as its usable views by time; and a rejection per view left out.

    A view that lies too much along the frame's border shows a part of the object, a small one no detail. One view
    alone makes no pair in a video; of a set or a single picture it still makes a `single` one.
    """
    tracks: dict[tuple[str, int], list[MaskRecord]] = {}
    rejections = []
    for row in masks:
        share = compute_box_share(row, frames[row.clip_id][row.sample_index])
        if row.border_contact > params.max_border_contact:
            rejections.append(_reject(row, "border_contact", f"share {row.border_contact:.2f} of its outline"))
        elif share < params.min_box_share:
            rejections.append(_reject(row, "small_box", f"share {share:.2f} of the frame's side"))
        else:
            tracks.setdefault((row.clip_id, row.track), []).append(row)
    usable: dict[str, list[list[MaskRecord]]] = {}
    for (clip_id, _), rows in sorted(tracks.items()):
        if len(rows) > 1 or orders[clip_id] != "time":
            usable.setdefault(clip_id, []).append(rows)
        else:
            rejections.append(_reject(rows[0], "no_second_view", "the only usable view of its track"))
    return usable, rejections


def keep_seen(clip: ClipViews, order: Order) -> tuple[ClipViews, list[Rejection]]:
    """The clip with those tracks that have views enough, by what is drawn; and a rejection per view of which nothing
    is. A mask's row and its picture may have come apart: that is the view's end, not the stage's."""
    rejections = [_reject(row, "empty_mask", "no pixel of it is drawn") for row in clip.unseen]
    kept = [track for track in clip.tracks if len(track.rows) > 1 or order != "time"]
    alone = [track.rows[0] for track in clip.tracks if len(track.rows) == 1 and order == "time"]
    rejections += [_reject(row, "no_second_view", "the only usable view of its track") for row in alone]
    return replace(clip, tracks=kept), rejections


def describe_counts(pairs: Sequence[PairRecord]) -> str:
    """`train 100, val 20, test 30` by split, then by kind."""
    splits, kinds = Counter(pair.split for pair in pairs), Counter(pair.kind for pair in pairs)
    return ", ".join(
        [f"{name} {splits[name]}" for name in SPLITS] + [f"{kind} {count}" for kind, count in sorted(kinds.items())]
    )


def _sort_key(pair: PairRecord) -> tuple[str, str, str, int, int, int]:
    return pair.split, pair.kind, pair.clip_id, pair.track, pair.reference_index, pair.target_index


def _reject(row: MaskRecord, reason: str, detail: str) -> Rejection:
    return Rejection(stage=STAGE, item=f"{row.clip_id}:{row.track}:{row.sample_index}", reason=reason, detail=detail)
