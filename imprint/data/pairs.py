"""Which pairs a stage uses: by kind and split, enough of them, of the preset's size, and partners for comparison."""

from __future__ import annotations

from collections.abc import Sequence

from imprint.core.errors import InputError
from imprint.core.records import PairKind, PairRecord, Split
from imprint.data.shards import ShardReader


def select_pairs(
    reader: ShardReader, kinds: Sequence[PairKind], *, split: Split, at_least: int = 1
) -> dict[PairKind, list[PairRecord]]:
    """Kind => its pairs in the split, sorted by id; `InputError` names the kind with fewer than `at_least`."""
    chosen: dict[PairKind, list[PairRecord]] = {}
    for kind in kinds:
        of_kind = (pair for pair in reader.pairs if pair.split == split and pair.kind == kind)
        chosen[kind] = sorted(of_kind, key=lambda pair: pair.pair_id)
        if len(chosen[kind]) < at_least:
            raise InputError(
                f"data/shards has {len(chosen[kind])} {kind} pairs in split {split}, {at_least} are needed; "
                f"raise mine_pairs.max_pairs_per_track.{kind} or add videos"
            )
    return chosen


def spread_pairs(pairs: Sequence[PairRecord], count: int) -> list[PairRecord]:
    """At most `count` pairs, evenly spaced over all when sorted by clip, so that every clip has its share."""
    ordered = sorted(pairs, key=lambda pair: (pair.clip_id, pair.track, pair.pair_id))
    count = min(count, len(ordered))
    return [ordered[index * len(ordered) // count] for index in range(count)]


def choose_strangers(pairs: Sequence[PairRecord]) -> list[int]:
    """For each pair the index of another that shows another object, the next in turn; its own where there is none."""
    objects = [(pair.clip_id, pair.track) for pair in pairs]
    return [_next_other(objects, index) for index in range(len(objects))]


def _next_other(objects: Sequence[tuple[str, int]], index: int) -> int:
    turn = ((index + step) % len(objects) for step in range(1, len(objects)))
    return next((other for other in turn if objects[other] != objects[index]), index)


def check_sizes(reader: ShardReader, pair: PairRecord, *, preset: str, size_px: int, reference_px: int) -> None:
    """`InputError` if the shards were not packed for the preset."""
    view = reader.read_view(pair, pair.target_index)
    found = {"size_px": view.scene.shape[0], "reference_px": view.object_rgba.shape[0]}
    for key, wanted in {"size_px": size_px, "reference_px": reference_px}.items():
        if found[key] != wanted:
            raise InputError(
                f"data/shards was packed with pack_shards.{key} {found[key]}, but preset {preset} needs {wanted}; "
                f"set pack_shards.{key}: {wanted} or choose another pretrain_encoder.preset"
            )
