"""Which pairs of views of one object are used, and in which split its clip lies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.pairs.views import TrackViews, compute_view_change
from imprint.core.errors import InputError
from imprint.core.files import compute_digest
from imprint.core.params import MinePairs
from imprint.core.records import MaskRecord, Order, PairKind, PairRecord, Rejection, Split, build_id

STAGE = "mine_pairs"
KINDS_OF_ORDER: dict[Order, frozenset[PairKind]] = {
    "time": frozenset(("multiview", "video", "single")),
    "views": frozenset(("multiview", "single")),  # nothing says that the background stayed
    "single": frozenset(("single",)),
}
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def split_clips(clip_ids: Sequence[str], params: MinePairs) -> dict[str, Split]:
    """Split of each clip: its place in a shuffle that depends on the seed and on nothing else.

    `val` and `test` get their share, and at least `min_clips_per_split`. `InputError` if a split stays below that.
    """
    shuffled = sorted(clip_ids, key=lambda clip_id: compute_digest(f"{params.seed} {clip_id}"))
    sizes: dict[Split, int] = {
        name: max(round(share * len(shuffled)), params.min_clips_per_split)
        for name, share in params.split_share.items()
    }
    result: dict[str, Split] = dict.fromkeys(shuffled, "train")
    start = 0
    for name, size in sorted(sizes.items()):
        result.update(dict.fromkeys(shuffled[start : start + size], name))
        start += size
    check_counts("clips with pairs", Counter(result.values()), params.min_clips_per_split, "min_clips_per_split")
    return result


def check_counts(unit: str, counts: Mapping[Split, int], minimum: int, setting: str) -> None:
    """`InputError` naming the counts and the setting if a split has less than `minimum`."""
    if min(counts.get(name, 0) for name in SPLITS) < minimum:
        found = ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS)
        raise InputError(
            f"{unit} per split: {found}; {STAGE}.{setting} = {minimum} asks for more; "
            f"add clips, or lower {STAGE}.{setting}"
        )


def choose_pairs(
    views: TrackViews, split: Split, *, params: MinePairs, order: Order
) -> tuple[list[PairRecord], list[Rejection]]:
    """Pairs of one track by the kinds that its order allows, at most `max_pairs_per_track` each; what was left out."""
    change = compute_view_change(views.thumbnails)
    first, second = np.triu_indices(len(views.rows), k=1)
    near = np.array(
        [
            _is_video_pair(views.rows[a], views.rows[b], params)
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ],
        bool,
    )
    differs = change[first, second] >= params.min_view_change
    ordered = np.stack([first, second], axis=1)
    candidates: dict[PairKind, np.ndarray] = {
        "multiview": ordered[differs],
        "video": ordered[near],
        "single": np.repeat(np.arange(len(views.rows))[:, None], 2, axis=1),
    }
    pairs, track = [], f"{views.rows[0].clip_id}:{views.rows[0].track}"
    rejections = [_count(track, "small_view_change", int((~differs).sum()), len(ordered))]
    for kind, indices in candidates.items():
        if kind not in KINDS_OF_ORDER[order]:
            continue
        limit = params.max_pairs_per_track.get(kind, 0)
        chosen = choose_spread(indices, limit, _build_generator(params.seed, track, kind))
        pairs += [_build_pair(kind, split, views.rows[a], views.rows[b], float(change[a, b])) for a, b in chosen]
        rejections.append(_count(track, f"over_max_{kind}", len(indices) - len(chosen), len(indices)))
    return pairs, [row for row in rejections if row is not None]


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


def _build_generator(seed: int, track: str, kind: str) -> np.random.Generator:
    return np.random.default_rng(int(compute_digest(f"{seed} {track} {kind}")[:16], 16))


def _is_video_pair(a: MaskRecord, b: MaskRecord, params: MinePairs) -> bool:
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


def _count(track: str, reason: str, count: int, total: int) -> Rejection | None:
    return Rejection(stage=STAGE, item=track, reason=reason, detail=f"{count} of {total} pairs") if count else None
