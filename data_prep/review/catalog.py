"""What there is to review: every track, and every pair, with where the object is seen and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.decisions import Decision, Key, Kind, Verdict, build_key, find_keys
from data_prep.gallery import Gallery, spread
from imprint.core.files import compute_digest
from imprint.core.records import ClipRecord, MaskRecord, PairRecord, load_records

CLIPS, PAIRS = Path("data/clips.parquet"), Path("data/pairs.parquet")
STRIP_VIEWS = 12


@dataclass(frozen=True)
class Item:
    """One thing to decide about. `frames` are those to be shown; of a pair the reference's and the target's.

    doubt: the larger, the likelier that something is wrong (a track's least confident mask, a pair's change of view);
    draw: a place in a random order that stays.
    """

    item_id: str
    key: Key
    clip: str
    frames: Sequence[int]
    facts: str
    doubt: float
    draw: str


@dataclass(frozen=True)
class Catalog:
    """All items by id, tracks first, and the pictures that they need."""

    items: Mapping[str, Item]
    ids: Mapping[Key, str]
    gallery: Gallery

    def resolve(self, decisions: Sequence[Decision]) -> list[str | None]:
        """The id of the item that each decision is about; None if there is none any more."""
        keys = find_keys(decisions, self.gallery.masks)
        return [self.ids.get(key) if key else None for key in keys]

    def build_decision(self, item_id: str, decision: Verdict, note: str) -> Decision:
        """What is written about an item: it is named by the place of its object in its first frame."""
        item = self.items[item_id]
        kind: Kind = item.key[0]  # pyright: ignore[reportAssignmentType]
        view = self.gallery.views[item.key[1], item.key[2], item.frames[0]]
        target = item.frames[0] if kind == "track" else item.frames[-1]
        return Decision(view.clip_id, kind, item.frames[0], target, view.box, decision, note)


def load_catalog(decisions: Sequence[Decision], root: Path = Path(".")) -> Catalog:
    """Tracks, pairs, and pairs that are dropped already and therefore mined no more, so that they can be undone."""
    gallery = Gallery(root)
    paths = {clip.clip_id: clip.path for clip in load_records(root / CLIPS, ClipRecord)}
    tracks: dict[tuple[str, int], list[MaskRecord]] = {}
    for row in sorted(gallery.masks, key=lambda row: (paths[row.clip_id], row.track, row.sample_index)):
        tracks.setdefault((row.clip_id, row.track), []).append(row)
    items = [_build_track(rows, paths[clip_id]) for (clip_id, _), rows in tracks.items()]
    pairs = load_records(root / PAIRS, PairRecord)
    known = {build_key(pair) for pair in pairs}
    items += [_build_pair(pair, paths[pair.clip_id]) for pair in sorted(pairs, key=lambda pair: paths[pair.clip_id])]
    for decision, key in zip(decisions, find_keys(decisions, gallery.masks), strict=True):
        ends = (decision.frame, decision.target_frame)
        if key and key[0] != "track" and key not in known and all((*key[1:3], at) in gallery.views for at in ends):
            items.append(_build_item(key, paths[key[1]], ends, "dropped before", 0.0))
    return Catalog({item.item_id: item for item in items}, {item.key: item.item_id for item in items}, gallery)


def _build_track(rows: Sequence[MaskRecord], path: str) -> Item:
    frames = [rows[place].sample_index for place in spread(len(rows), STRIP_VIEWS)]
    key: Key = ("track", rows[0].clip_id, rows[0].track, -1, -1)
    area = float(np.mean([row.area_share for row in rows]))
    facts = f"{len(rows)} frames, {rows[-1].time_s - rows[0].time_s:.1f} s, {100 * area:.0f} % of the frame"
    return _build_item(key, path, frames, facts, 1.0 - min(row.confidence for row in rows))


def _build_pair(pair: PairRecord, path: str) -> Item:
    ends = (pair.reference_index, pair.target_index)
    facts = f"{pair.split}, gap {pair.gap_frames} frames, {pair.gap_s:.1f} s, change of view {pair.view_change:.2f}"
    facts = pair.split if pair.kind == "single" else facts
    return _build_item(build_key(pair), path, ends, facts, pair.view_change)


def _build_item(key: Key, path: str, frames: Sequence[int], facts: str, doubt: float) -> Item:
    kind, clip_id, track, low, high = key
    item_id = f"{kind}:{clip_id}:{track}" + ("" if kind == "track" else f":{low}:{high}")
    return Item(item_id, key, path, frames, facts, round(doubt, 6), compute_digest(item_id)[:8])
