"""Packs the rendered training world as the pipeline's shards: tars in WebDataset layout, views.parquet, pairs.parquet.

An object is a clip of its own with one track. Views alone come first, scenes after them; see `demo.training_world`.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo.archive import write_tar
from demo.catalogue import HELD_OUT_SEEDS
from imprint.core.files import publish_dir, write_json_atomic
from imprint.core.pixels import decode_image, encode_image
from imprint.core.records import PairKind, PairRecord, Split, ViewRecord, build_id, save_records

TRACK = 1
VAL_EVERY = 50  # of the training seeds
NEAR_DEG = 60.0  # a pair is near when the views differ by no more
NEAR_PER_VIEW, FAR_PER_VIEW = 4, 1
SHARD_MB = 32.0
SOURCE, LICENCE = "demo/training_world.py", "CC0-1.0"


@dataclass(frozen=True)
class WorldObject:
    """One object's tar: its views' records from `views.json`, and the bytes of the members."""

    seed: int
    views: list[dict]
    members: dict[str, bytes]

    @property
    def clip_id(self) -> str:
        return str(self.seed)

    @property
    def split(self) -> Split:
        if self.seed in HELD_OUT_SEEDS:
            return "test"
        return "val" if self.seed % VAL_EVERY == 0 else "train"


def pack_world(folder: Path, target: Path, *, quality: int | None = None) -> dict[str, int]:
    """Write the shards of all objects in `folder` to `target`; `quality` encodes colours anew as WebP of that quality.

    Returns the counts of objects, views and pairs.
    """
    rows: list[ViewRecord] = []
    pairs: list[PairRecord] = []
    scratch = target.with_name(target.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    count = 0
    for name, part in _split_by_size(read_objects(folder)):
        members: dict[str, bytes] = {}
        for thing in part:
            members |= _name_members(thing, quality)
            pairs += choose_pairs(thing)
        write_tar(scratch / name, members)
        rows += _index_shard(scratch / name, part)
        count += len(part)
    save_records(scratch / "views.parquet", ViewRecord, rows)
    save_records(scratch / "pairs.parquet", PairRecord, pairs)
    write_json_atomic(scratch / "licences.json", [{"source": SOURCE, "licence": LICENCE, "items": count}])
    publish_dir(scratch, target)
    shutil.rmtree(scratch)
    return {"objects": count, "views": len(rows), "pairs": len(pairs)}


def read_objects(folder: Path) -> Iterator[WorldObject]:
    """The objects in `folder`, in the order of their seeds."""
    for path in sorted(folder.glob("*.tar"), key=lambda path: int(path.stem)):
        with tarfile.open(path) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        record = json.loads(members.pop("views.json"))
        yield WorldObject(record["seed"], record["views"], members)


def choose_pairs(thing: WorldObject) -> list[PairRecord]:
    """All pairs of an object: `multiview` of views alone, `video` from a view alone to a scene, `single` of each alone.

    For every target some near references and a far one, drawn by the object's seed.
    """
    rng = np.random.default_rng([thing.seed, 13])
    alone = [view for view in thing.views if view["kind"] == "alone"]
    pairs = []
    for target in thing.views:
        kind: PairKind = "multiview" if target["kind"] == "alone" else "video"
        others = [view for view in alone if view["index"] != target["index"]]
        near = [view for view in others if compute_turn(view, target) <= NEAR_DEG]
        far = [view for view in others if compute_turn(view, target) > NEAR_DEG]
        for group, size in ((near, NEAR_PER_VIEW), (far, FAR_PER_VIEW)):
            for place in rng.permutation(len(group))[:size]:
                pairs.append(_build_pair(thing, kind, group[int(place)], target))
        if target["kind"] == "alone":
            pairs.append(_build_pair(thing, "single", target, target))
    return pairs


def compute_turn(first: dict, second: dict) -> float:
    """Degrees, 0 to 180, between the directions from which two views see the object."""
    return abs((first["turn_deg"] - second["turn_deg"] + 180.0) % 360.0 - 180.0)


def _build_pair(thing: WorldObject, kind: PairKind, reference: dict, target: dict) -> PairRecord:
    return PairRecord(
        pair_id=build_id(thing.clip_id, kind, reference["index"], target["index"]),
        kind=kind,
        split=thing.split,
        clip_id=thing.clip_id,
        track=TRACK,
        reference_index=reference["index"],
        target_index=target["index"],
        gap_frames=0,
        gap_s=0.0,
        view_change=round(compute_turn(reference, target) / 180.0, 4),
    )


def _name_members(thing: WorldObject, quality: int | None) -> dict[str, bytes]:
    """`<view_id>.<part>` => bytes. The names keep the pipeline's endings; the reader looks at the content."""
    names = {"object.webp": "object.png", "scene.jpg": "scene.jpg", "mask.png": "mask.png", "plate.jpg": "plate.jpg"}
    named = {}
    for member, data in thing.members.items():
        number, _, part = member.partition(".")
        if quality is not None and part != "mask.png":
            data = encode_image(decode_image(data, member), ".webp", quality)
        named[f"{build_id(thing.clip_id, TRACK, int(number))}.{names[part]}"] = data
    return named


def _split_by_size(objects: Iterator[WorldObject]) -> Iterator[tuple[str, list[WorldObject]]]:
    """Shard name and its objects: consecutive ones of one split, about SHARD_MB of data."""
    numbers: dict[Split, int] = {}
    held: dict[Split, list[WorldObject]] = {"train": [], "val": [], "test": []}
    sizes: dict[Split, float] = dict.fromkeys(held, 0.0)
    for thing in objects:
        held[thing.split].append(thing)
        sizes[thing.split] += sum(map(len, thing.members.values())) / 1e6
        if sizes[thing.split] >= SHARD_MB:
            yield _name_shard(thing.split, numbers), held[thing.split]
            held[thing.split], sizes[thing.split] = [], 0.0
    for split, part in held.items():
        if part:
            yield _name_shard(split, numbers), part


def _name_shard(split: Split, numbers: dict[Split, int]) -> str:
    numbers[split] = numbers.get(split, -1) + 1
    return f"{split}-{numbers[split]:05d}.tar"


def _index_shard(path: Path, part: list[WorldObject]) -> list[ViewRecord]:
    """The rows of a written shard: where each view's parts lie in it; (0, 0) for a part that a view has not."""
    with tarfile.open(path) as tar:
        spans = {info.name: (info.offset_data, info.size) for info in tar}
    rows = []
    for thing in part:
        for view in thing.views:
            view_id = build_id(thing.clip_id, TRACK, view["index"])
            parts = {
                name: spans.get(f"{view_id}.{name}", (0, 0))
                for name in ("object.png", "scene.jpg", "mask.png", "plate.jpg")
            }
            rows.append(
                ViewRecord(
                    view_id=view_id,
                    split=thing.split,
                    clip_id=thing.clip_id,
                    track=TRACK,
                    sample_index=view["index"],
                    shard=path.name,
                    object_offset=parts["object.png"][0],
                    object_bytes=parts["object.png"][1],
                    scene_offset=parts["scene.jpg"][0],
                    scene_bytes=parts["scene.jpg"][1],
                    mask_offset=parts["mask.png"][0],
                    mask_bytes=parts["mask.png"][1],
                    plate_offset=parts["plate.jpg"][0],
                    plate_bytes=parts["plate.jpg"][1],
                )
            )
    return rows
