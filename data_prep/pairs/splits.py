"""In which split a clip lies: whole clusters of near-duplicates, by their place in a shuffle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from imprint.core.errors import InputError
from imprint.core.files import compute_digest
from imprint.core.params import MinePairs
from imprint.core.records import Split

STAGE = "mine_pairs"
SPLITS: tuple[Split, ...] = ("train", "val", "test")
LEAST, MOST = 0.5, 1.5  # of its share of the clips that `val` or `test` has


def assign_splits(clusters: Sequence[Sequence[str]], params: MinePairs) -> dict[str, Split]:
    """Split of each clip; a cluster is never divided.

    A cluster's place in [0, 1) is the lowest of its clips' places, each a digest of the seed and the clip's content.
    Places from 1 - test on (`split_share`) are `test`, those from 1 - test - val on `val`, the others `train`. So an
    added clip moves no other one, unless it joins clusters. Chance is kept within bounds, from the highest place down:
    `test` and `val` take no cluster that would bring them over 1.5 times their share of the clips, and take the next
    one, whatever its place, until they have half their share and `min_clips_per_split`. `InputError` if a split stays
    below `min_clips_per_split`.
    """
    num_clips = sum(map(len, clusters))
    result: dict[str, Split] = {}
    counts: Counter[Split] = Counter()
    for cluster in sorted(clusters, key=lambda cluster: _compute_place(cluster, params.seed), reverse=True):
        place, below, chosen = _compute_place(cluster, params.seed), 1.0, SPLITS[0]
        for split in ("test", "val"):
            expected = params.split_share[split] * num_clips
            below -= params.split_share[split]
            least = max(LEAST * expected, params.min_clips_per_split)
            fits = counts[split] + len(cluster) <= max(MOST * expected, params.min_clips_per_split)
            if fits and (place >= below or counts[split] < least):
                chosen = split
                break
        result.update(dict.fromkeys(cluster, chosen))
        counts[chosen] += len(cluster)
    unit = f"clips with pairs ({len(clusters)} clusters of near-duplicates)"
    check_counts(unit, counts, params.min_clips_per_split, "min_clips_per_split")
    return result


def _compute_place(cluster: Sequence[str], seed: int) -> float:
    return min(int(compute_digest(f"{seed} {clip_id}")[:13], 16) / 16**13 for clip_id in cluster)


def check_counts(unit: str, counts: Mapping[Split, int], minimum: int, setting: str) -> None:
    """`InputError` naming the counts and the setting if a split has less than `minimum`."""
    if min(counts.get(name, 0) for name in SPLITS) < minimum:
        found = ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS)
        raise InputError(
            f"{unit} per split: {found}; {STAGE}.{setting} = {minimum} asks for more; "
            f"add clips, or lower {STAGE}.{setting}"
        )
