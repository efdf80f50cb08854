"""The data products as one value, and the counts that `metrics/data.json` holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.decisions import Decision, load_decisions
from data_prep.gallery import Gallery
from imprint.core.outside import load_json
from imprint.core.records import ClipRecord, MaskRecord, PairRecord, Rejection, ViewRecord, load_records

STAGES = ("ingest", "extract_frames", "segment_objects", "mine_pairs")  # those with a ledger, in their order
LEDGERS = tuple(Path(f"data/ledgers/{stage}.parquet") for stage in STAGES)
SPLITS_RECORD = Path("data/ledgers/mine_pairs.splits.json")
CLIPS, PAIRS, SHARDS = Path("data/clips.parquet"), Path("data/pairs.parquet"), Path("data/shards")
SPLITS = ("train", "val", "test")
KINDS = {"multiview": "stage 1", "video": "stage 2", "single": "stage 2"}
DECIMALS = 4


@dataclass(frozen=True)
class DataSet:
    """All products of the data stages. `tracks` has the rows of each clip's track by time; `leak`: what of the
    test split was found in training, as `mine_pairs` measured it."""

    clips: Sequence[ClipRecord]
    gallery: Gallery
    tracks: Mapping[tuple[str, int], Sequence[MaskRecord]]
    pairs: Sequence[PairRecord]
    ledgers: Mapping[str, Sequence[Rejection]]
    shard_views: Sequence[ViewRecord]
    shard_bytes: int
    decisions: Sequence[Decision]
    leak: Mapping[str, float]


def load_data_set(root: Path = Path(".")) -> DataSet:
    """Read everything but the pictures. `InputError` for a product that is missing."""
    gallery = Gallery(root)
    tracks: dict[tuple[str, int], list[MaskRecord]] = {}
    for row in gallery.masks:
        tracks.setdefault((row.clip_id, row.track), []).append(row)
    views = load_records(root / SHARDS / "views.parquet", ViewRecord)
    return DataSet(
        clips=load_records(root / CLIPS, ClipRecord),
        gallery=gallery,
        tracks={key: sorted(rows, key=lambda row: row.sample_index) for key, rows in sorted(tracks.items())},
        pairs=load_records(root / PAIRS, PairRecord),
        ledgers={stage: load_records(root / path, Rejection) for stage, path in zip(STAGES, LEDGERS, strict=True)},
        shard_views=views,
        shard_bytes=sum((root / SHARDS / name).stat().st_size for name in {row.shard for row in views}),
        decisions=load_decisions(root),
        leak=load_json(root / SPLITS_RECORD)["leak"],
    )


def compute_metrics(data: DataSet) -> dict[str, Any]:
    """What `metrics/data.json` holds; `clips` by their path, so that two versions can be compared clip by clip."""
    frames = Counter(clip_id for clip_id, _ in data.gallery.frames)
    tracks = Counter(clip_id for clip_id, _ in data.tracks)
    pairs = Counter(pair.clip_id for pair in data.pairs)
    splits = {pair.clip_id: pair.split for pair in data.pairs}
    kinds = Counter((pair.kind, pair.split) for pair in data.pairs)
    reviewed = Counter(decision.decision for decision in data.decisions)
    return {
        "totals": {
            "clips": len(data.clips),
            "clips_with_pairs": len(pairs),
            "frames": len(data.gallery.frames),
            "tracks": len(data.tracks),
            "masks": len(data.gallery.masks),
            "pairs": len(data.pairs),
            "shards": len({row.shard for row in data.shard_views}),
            "shard_views": len(data.shard_views),
            "shard_mb": round(data.shard_bytes / 1e6, DECIMALS),
        },
        "clips_per_split": {split: list(splits.values()).count(split) for split in SPLITS},
        "leak": dict(data.leak),
        "pairs": {kind: {split: kinds[kind, split] for split in SPLITS} for kind in KINDS},
        "left_out": {stage: dict(Counter(row.reason for row in rows)) for stage, rows in data.ledgers.items()},
        "pairs_left_out": count_pairs_left_out(data.ledgers["mine_pairs"]),
        "licences": dict(Counter(clip.licence for clip in data.clips if clip.clip_id in pairs)),
        "review": {"keep": reviewed["keep"], "drop": reviewed["drop"]},
        "distributions": {name: summarise(values) for name, values in list_distributions(data).items()},
        "clips": {
            name: {
                "id": clip.clip_id,
                "frames": frames[clip.clip_id],
                "tracks": tracks[clip.clip_id],
                "pairs": pairs[clip.clip_id],
                "split": splits.get(clip.clip_id, "none"),
            }
            for name, clip in name_clips(data.clips).items()
        },
    }


def name_clips(clips: Sequence[ClipRecord]) -> dict[str, ClipRecord]:
    """Path in the source => clip; of single pictures in one folder with the picture's name."""
    names = {
        clip.clip_id: f"{clip.path}/{clip.frames[0]}" if clip.order == "single" and clip.frames else clip.path
        for clip in clips
    }
    return {names[clip.clip_id]: clip for clip in sorted(clips, key=lambda clip: names[clip.clip_id])}


def count_pairs_left_out(rows: Sequence[Rejection]) -> dict[str, int]:
    """Reason => pairs, from the ledger rows that count them (`12 of 40 pairs`)."""
    counts = Counter[str]()
    for row in rows:
        match = re.match(r"(\d+) of \d+ pairs", row.detail)
        if match:
            counts[row.reason] += int(match[1])
    return dict(counts)


def list_distributions(data: DataSet) -> dict[str, np.ndarray]:
    """Name => one value per mask, frame, track or pair."""
    by_kind = {kind: [pair for pair in data.pairs if pair.kind == kind] for kind in KINDS}
    values: dict[str, Sequence[float]] = {
        "area_share": [row.area_share for row in data.gallery.masks],
        "track_frames": [len(rows) for rows in data.tracks.values()],
        "sharpness": [frame.sharpness for frame in data.gallery.frames.values()],
        "mask_confidence": [row.confidence for row in data.gallery.masks],
        "multiview_view_change": [pair.view_change for pair in by_kind["multiview"]],
        "multiview_gap_frames": [pair.gap_frames for pair in by_kind["multiview"]],
        "video_view_change": [pair.view_change for pair in by_kind["video"]],
        "video_gap_frames": [pair.gap_frames for pair in by_kind["video"]],
    }
    return {name: np.asarray(of, np.float64) for name, of in values.items()}


def summarise(values: np.ndarray) -> dict[str, float]:
    """Number and quantiles; the number alone where there are no values."""
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    if not values.size:
        return {"count": 0}
    quantiles = {name: round(float(np.quantile(values, share)), DECIMALS) for name, share in shares.items()}
    return {"count": int(values.size), **quantiles}
