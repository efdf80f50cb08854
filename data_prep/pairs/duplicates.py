"""Which clips show the same frames, the same object or the same background: near-duplicates, whatever their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data_prep.pairs.backgrounds import MIN_SPREAD, Backgrounds, compute_differences, count_matches
from data_prep.pairs.views import ClipViews, Patterns, build_patterns, compute_view_change, spread_evenly
from imprint.core.params import NearDuplicates

VIEWS_PER_TRACK = 8  # of which the clusters are made; the leak is measured on all
BLOCK_ROWS = 512
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows, others => [rows, others]: how much they differ


@dataclass(frozen=True, order=True)
class Link:
    """Two clips that may not lie in two splits, what they share, and by how much they differ there (or match)."""

    first: str
    second: str
    shared: str  # frame, object, background or place
    value: float


@dataclass(frozen=True)
class Rows:
    """A measure over views of all clips, sorted by clip: `clips[k]` is that of row k; less than `limit` is the same."""

    shared: str
    clips: Sequence[str]
    measure: Measure
    limit: float


def build_rows(clips: Sequence[ClipViews], limits: NearDuplicates, *, views_per_track: int | None = None) -> list[Rows]:
    """The three measures that compare every view with every other; objects by at most `views_per_track` views."""
    owners = [clip.clip_id for clip in clips for _ in clip.hashes]
    hashes = np.array([[float(bit) for bit in f"{value:064b}"] for clip in clips for value in clip.hashes], np.float32)
    signs = 2.0 * hashes - 1.0
    colours = np.concatenate([clip.backgrounds.colours for clip in clips])
    backgrounds = Backgrounds(colours, np.concatenate([clip.backgrounds.free for clip in clips]))
    thumbnails, objects = [], []
    for clip in clips:
        for track in clip.tracks:
            count = len(track.rows)
            chosen = track.thumbnails[spread_evenly(count, views_per_track or count)]
            thumbnails.append(chosen)
            objects += [clip.clip_id] * len(chosen)
    patterns = build_patterns(np.concatenate(thumbnails))
    return [
        Rows("frame", owners, lambda rows, others: (64.0 - signs[rows] @ signs[others].T) / 2.0, limits.frame_bits),
        Rows("object", objects, lambda rows, others: _compare_objects(patterns, rows, others), limits.object_change),
        Rows(
            "background",
            owners,
            lambda rows, others: _compare_backgrounds(backgrounds, rows, others),
            limits.background_rms,
        ),
    ]


def _compare_objects(patterns: Patterns, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return compute_view_change(patterns.select(rows), patterns.select(others))


def _compare_backgrounds(backgrounds: Backgrounds, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    difference, spread = compute_differences(backgrounds.select(rows), backgrounds.select(others))
    return np.where(spread >= MIN_SPREAD, difference, np.inf)


def find_links(clips: Sequence[ClipViews], limits: NearDuplicates) -> list[Link]:
    """All pairs of clips that share something, sorted. Its cost grows with the square of the number of views."""
    links = [
        link
        for rows in build_rows(clips, limits, views_per_track=VIEWS_PER_TRACK)
        if rows.limit > 0
        for link in _find_close(rows)
    ]
    if limits.background_matches:
        for first, second in combinations(clips, 2):
            counts = [
                count_matches(a, b, least=limits.background_matches)
                for a in first.features.values()
                for b in second.features.values()
            ]
            matches = max(counts, default=0)
            if matches >= limits.background_matches:
                links.append(Link(first.clip_id, second.clip_id, "place", float(matches)))
    return sorted(links)


def _find_close(rows: Rows) -> list[Link]:
    names, codes = np.unique(rows.clips, return_inverse=True)
    starts = np.searchsorted(codes, np.arange(len(names)))
    closest: dict[tuple[int, int], float] = {}
    for part in _split_blocks(np.arange(len(codes))):
        later = np.arange(int(codes[part[0]]) + 1, len(names))  # a clip is compared with those behind it
        if not len(later):
            break
        others = np.arange(int(starts[later[0]]), len(codes))
        by_clip = np.minimum.reduceat(rows.measure(part, others), starts[later] - others[0], axis=1)  # [rows, clips]
        is_close = (by_clip < rows.limit) & (codes[part][:, None] < later)
        for row, other in np.argwhere(is_close):
            key = int(codes[part[row]]), int(later[other])
            closest[key] = min(float(by_clip[row, other]), closest.get(key, np.inf))
    return [Link(str(names[a]), str(names[b]), rows.shared, round(value, 4)) for (a, b), value in closest.items()]


def _split_blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]


def find_clusters(clip_ids: Sequence[str], links: Sequence[Link]) -> list[list[str]]:
    """Clips that are joined by links, directly or through others, sorted."""
    leader = {clip_id: clip_id for clip_id in clip_ids}

    def find(clip_id: str) -> str:
        while leader[clip_id] != clip_id:
            leader[clip_id] = clip_id = leader[leader[clip_id]]
        return clip_id

    for link in links:
        low, high = sorted((find(link.first), find(link.second)))
        leader[high] = low
    clusters: dict[str, list[str]] = {}
    for clip_id in sorted(clip_ids):
        clusters.setdefault(find(clip_id), []).append(clip_id)
    return list(clusters.values())


def measure_leak(clips: Sequence[ClipViews], splits: Mapping[str, str], limits: NearDuplicates) -> dict[str, float]:
    """How many views of the test split have a near-duplicate in the training split, by what they share.

    Every view of the one is compared with every view of the other, which the clusters were not made from; `share` is
    the largest share of the test split's frames or objects that leak by one of the measures. Features of backgrounds
    take no part.
    """
    result: dict[str, float] = {"share": 0.0}
    for rows in build_rows(clips, limits):
        places = np.array([splits[clip_id] for clip_id in rows.clips])
        test, train = np.flatnonzero(places == "test"), np.flatnonzero(places == "train")
        closest = [rows.measure(part, train).min(axis=1, initial=np.inf) for part in _split_blocks(test)]
        leaking = int(sum((distance < rows.limit).sum() for distance in closest))
        result |= {f"num_{rows.shared}s": len(test), f"leaking_{rows.shared}s": leaking}
        result["share"] = max(result["share"], leaking / max(len(test), 1))
    return result
