"""Which pairs of views of one object are used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from data_prep.pairs.splits import STAGE
from data_prep.pairs.views import ClipViews, TrackViews, compute_background_change, compute_changes
from imprint.core.files import compute_digest
from imprint.core.params import MinePairs
from imprint.core.records import MaskRecord, Order, PairKind, PairRecord, Rejection, Split, build_id

PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)
KINDS_OF_ORDER: dict[Order, frozenset[PairKind]] = {
    "time": frozenset(("multiview", "video", "single")),
    "views": frozenset(("multiview", "single")),  # nothing says that the background stayed
    "single": frozenset(("single",)),
}


@dataclass(frozen=True)
class Candidates:
    """A track's pairs that would do, by kind: places in its rows [n, 2]; and what was left out.

    changes: view change of all its views [n, n]; fits: which views may be a target of stage 2, bool [n].
    """

    track: TrackViews
    pairs: dict[PairKind, np.ndarray]
    changes: np.ndarray
    fits: np.ndarray
    rejections: list[Rejection]


def choose_pairs(
    clip: ClipViews, split: Split, *, params: MinePairs, order: Order
) -> tuple[list[PairRecord], list[Rejection]]:
    """Pairs of one clip by the kinds that its order allows, and what was left out.

    Each track gives at most `max_pairs_per_track` of a kind, and all of them together `max_pairs_per_clip`.
    """
    kinds: list[PairKind] = [kind for kind in PAIR_KINDS if kind in KINDS_OF_ORDER[order]]
    found = [find_candidates(track, clip, params, kinds) for track in clip.tracks]
    pairs, rejections = [], [row for candidates in found for row in candidates.rejections]
    for kind in kinds:
        counts = [min(len(of.pairs[kind]), params.max_pairs_per_track.get(kind, 0)) for of in found]
        limits = share_out(counts, params.max_pairs_per_clip.get(kind, 0))
        for of, count, limit in zip(found, counts, limits, strict=True):
            pairs += draw_pairs(of, kind, limit, split=split, seed=params.seed)
            name, total = of.track.name, len(of.pairs[kind])
            rejections += _count(name, f"over_max_{kind}", total - count, total)
            rejections += _count(name, f"over_max_{kind}_of_clip", count - limit, total)
    return pairs, rejections


def find_candidates(
    track: TrackViews, clip: ClipViews, params: MinePairs, kinds: Sequence[PairKind] = PAIR_KINDS
) -> Candidates:
    """The filters of pairs: a change of view (stage 1), nearness, background and size of the target (stage 2)."""
    first, second = np.triu_indices(len(track.rows), k=1)
    ordered = np.stack([first, second], axis=1)
    changes = compute_changes(track)
    differs = changes[first, second] >= params.min_view_change
    near = np.array([_is_near(track.rows[a], track.rows[b], params) for a, b in ordered.tolist()], bool)
    near_pairs = ordered[near] if "video" in kinds else ordered[:0]
    stayed = compute_background_change(track, clip, near_pairs) <= params.video_max_background_change
    fits = track.box_shares <= params.max_target_box_share
    video = near_pairs[stayed]
    either = fits[video].any(axis=1)  # the one that fits becomes the target
    pairs: dict[PairKind, np.ndarray] = {
        "multiview": ordered[differs],
        "video": video[either],
        "single": np.repeat(np.flatnonzero(fits)[:, None], 2, axis=1),
    }
    rejections = _count(track.name, "small_view_change", int((~differs).sum()), len(ordered))
    rejections += _count(track.name, "background_changed", int((~stayed).sum()), len(near_pairs))
    rejections += _count(track.name, "large_video_target", int((~either).sum()), len(video))
    rejections += _count(track.name, "large_single_target", int((~fits).sum()), len(track.rows))
    return Candidates(track, pairs, changes, fits, rejections)


def share_out(counts: Sequence[int], limit: int) -> list[int]:
    """How many of `counts` each track may give so that all give at most `limit`: as even as can be, the first more."""
    shares, left = [0] * len(counts), limit
    for rank, place in enumerate(sorted(range(len(counts)), key=lambda place: counts[place])):
        shares[place] = min(counts[place], left // (len(counts) - rank))
        left -= shares[place]
    return shares


def draw_pairs(candidates: Candidates, kind: PairKind, limit: int, *, split: Split, seed: int) -> list[PairRecord]:
    """At most `limit` of the candidates of a kind, spread over the views, drawn by the seed and the track's name."""
    rows = candidates.track.rows
    generator = np.random.default_rng(int(compute_digest(f"{seed} {candidates.track.name} {kind}")[:16], 16))
    chosen = choose_spread(candidates.pairs[kind], limit, generator)
    if kind == "video":
        turned = ~candidates.fits[chosen[:, 1]]
        chosen[turned] = chosen[turned, ::-1]
    return [_build_pair(kind, split, rows[a], rows[b], float(candidates.changes[a, b])) for a, b in chosen]


def choose_spread(pairs: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    """At most `limit` of the rows of `pairs` [n, 2], in random order and direction, spread evenly over the views.

    One pass over the shuffled pairs admits those whose views are used less than the average will be; further passes
    raise that by one until the limit is reached.
    """
    shuffled = generator.permuted(generator.permutation(pairs), axis=1)
    if len(pairs) <= limit:
        return shuffled
    num_views = len(np.unique(pairs))
    allowed = math.ceil(2 * limit / num_views)
    used, taken = Counter[int](), np.zeros(len(pairs), dtype=bool)
    while taken.sum() < limit:
        for position in np.flatnonzero(~taken):
            views = set(shuffled[position].tolist())
            if taken.sum() < limit and all(used[view] < allowed for view in views):
                used.update(views)
                taken[position] = True
        allowed += 1
    return shuffled[taken]


def _is_near(a: MaskRecord, b: MaskRecord, params: MinePairs) -> bool:
    gap_frames, gap_s = abs(b.sample_index - a.sample_index), abs(b.time_s - a.time_s)
    return a.shot == b.shot and gap_frames <= params.video_max_gap_frames and gap_s <= params.video_max_gap_s


def _build_pair(kind: PairKind, split: Split, reference: MaskRecord, target: MaskRecord, change: float) -> PairRecord:
    ends = (reference.sample_index, target.sample_index)
    return PairRecord(
        pair_id=build_id(kind, reference.clip_id, reference.track, *ends),
        kind=kind,
        split=split,
        clip_id=reference.clip_id,
        track=reference.track,
        reference_index=ends[0],
        target_index=ends[1],
        gap_frames=abs(ends[1] - ends[0]),
        gap_s=abs(target.time_s - reference.time_s),
        view_change=round(change, 6),
    )


def _count(track: str, reason: str, count: int, total: int) -> list[Rejection]:
    """A row on pairs of a track that were left out; none for none."""
    return [Rejection(stage=STAGE, item=track, reason=reason, detail=f"{count} of {total} pairs")] if count else []
