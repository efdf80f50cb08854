"""Stage `mine_pairs`: pairs of views of one object, capped per track, split by source clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.decisions import drop_reviewed
from data_prep.ledger import check_share, print_counts, save_ledger
from data_prep.pairs.mining import SPLITS, STAGE, check_counts, choose_pairs, split_clips
from data_prep.pairs.views import TrackViews, load_thumbnails
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

CODE = ("data_prep.pairs", "data_prep.decisions", "data_prep.ledger", "data_prep.tars", "imprint.core")
CLIPS, FRAMES, MASKS, OUT = (
    Path("data/clips.parquet"),
    Path("data/frames"),
    Path("data/masks"),
    Path("data/pairs.parquet"),
)


def run_mine_pairs(params: Params, root: Path = Path(".")) -> None:
    """Write `data/pairs.parquet` and the ledger. `InputError` if a split has too few clips or pairs."""
    section = params.mine_pairs
    open_stage(STAGE, section, [CLIPS, FRAMES, MASKS], CODE, root)
    orders: dict[str, Order] = {clip.clip_id: clip.order for clip in load_records(root / CLIPS, ClipRecord)}
    frames = load_records(root / FRAMES / "index.parquet", FrameRecord)
    masks = load_records(root / MASKS / "index.parquet", MaskRecord)
    usable, rejections = select_views(masks, section, orders)
    num_rejected = len(rejections)
    save_ledger(STAGE, rejections, root)
    check_share(STAGE, "views", num_rejected, len(masks) - num_rejected, section.max_rejected_share)
    splits = split_clips(sorted(usable), section)
    pairs: list[PairRecord] = []
    for clip_id, tracks in track(usable.items(), "mine_pairs: clips", len(usable)):
        by_index = {frame.sample_index: frame for frame in frames if frame.clip_id == clip_id}
        for views in load_tracks(clip_id, tracks, by_index, root):
            chosen, left_out = choose_pairs(views, splits[clip_id], params=section, order=orders[clip_id])
            pairs += chosen
            rejections += left_out
    pairs, dropped = drop_reviewed(pairs, masks, root)
    rejections += dropped
    save_ledger(STAGE, rejections, root)
    print_counts(STAGE, f"{len(pairs)} pairs of {len(usable)} clips ({describe_counts(pairs)})", rejections)
    for kind in [kind for kind, limit in section.max_pairs_per_track.items() if limit]:
        counts: Counter[Split] = Counter(pair.split for pair in pairs if pair.kind == kind)
        check_counts(f"{kind} pairs", counts, section.min_pairs_per_split, "min_pairs_per_split")
    save_records(root / OUT, PairRecord, sorted(pairs, key=_sort_key))


def select_views(
    masks: Sequence[MaskRecord], params: MinePairs, orders: Mapping[str, Order]
) -> tuple[dict[str, list[list[MaskRecord]]], list[Rejection]]:
    """Clip => its tracks, each as its usable views by time; and a rejection per view left out.

    A view that lies too much along the frame's border shows a part of the object. One view alone
    makes no pair in a video; of a set or a single picture it still makes a `single` one.
    """
    tracks: dict[tuple[str, int], list[MaskRecord]] = {}
    rejections = []
    for row in masks:
        if row.border_contact > params.max_border_contact:
            rejections.append(_reject(row, "border_contact", f"share {row.border_contact:.2f} of its outline"))
        else:
            tracks.setdefault((row.clip_id, row.track), []).append(row)
    usable: dict[str, list[list[MaskRecord]]] = {}
    for (clip_id, _), rows in sorted(tracks.items()):
        if len(rows) > 1 or orders[clip_id] != "time":
            usable.setdefault(clip_id, []).append(rows)
        else:
            rejections.append(_reject(rows[0], "no_second_view", "the only usable view of its track"))
    return usable, rejections


def load_tracks(
    clip_id: str, tracks: Sequence[Sequence[MaskRecord]], frames: dict[int, FrameRecord], root: Path
) -> list[TrackViews]:
    """Thumbnails of all tracks of one clip."""
    rows = [row for views in tracks for row in views]
    tars = root / FRAMES / f"{clip_id}.tar", root / MASKS / f"{clip_id}.tar"
    thumbnails = load_thumbnails(rows, frames, *tars)
    result, start = [], 0
    for views in tracks:
        result.append(TrackViews(views, thumbnails[start : start + len(views)]))
        start += len(views)
    return result


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
