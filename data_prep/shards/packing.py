"""Training-ready views of one clip's objects, and tar shards of a limited size with their index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.tars import HEADER_BYTES, TarWriter, read_tar
from imprint.core.params import PackShards
from imprint.core.pixels import decode_image
from imprint.core.prepare import encode_view
from imprint.core.records import Split, ViewRecord, build_id

PARTS = ("object.png", "scene.jpg", "mask.png")


@dataclass(frozen=True, order=True)
class ViewKey:
    """What a view shows; `sample_index` names the frame."""

    split: Split
    clip_id: str
    track: int
    sample_index: int


def encode_clip(
    keys: Sequence[ViewKey], frames_tar: Path, masks_tar: Path, params: PackShards
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The views `keys` of one clip, in their order."""
    frames, masks = read_tar(frames_tar), read_tar(masks_tar)
    for key in keys:
        image = decode_image(frames[f"{key.sample_index:06d}.jpg"], f"{frames_tar}:{key.sample_index}")
        mask = decode_image(masks[f"{key.sample_index:06d}.png"], f"{masks_tar}:{key.sample_index}")[..., 0]
        yield encode_view(image, mask == key.track, params)


def write_shard(path: Path, views: Sequence[tuple[ViewKey, tuple[bytes, bytes, bytes]]]) -> list[ViewRecord]:
    """One tar of views in WebDataset layout; the rows hold the absolute byte offsets of the members' data."""
    rows = []
    with TarWriter(path) as tar:
        for key, parts in views:
            view_id = build_id(key.clip_id, key.track, key.sample_index)
            offsets = [tar.add(f"{view_id}.{name}", data) for name, data in zip(PARTS, parts, strict=True)]
            rows.append(_build_row(view_id, key, path.name, offsets, [len(data) for data in parts]))
    return rows


def compute_tar_bytes(parts: Sequence[bytes]) -> int:
    """Bytes that members take in a tar."""
    return sum(HEADER_BYTES + -(-len(data) // HEADER_BYTES) * HEADER_BYTES for data in parts)


def _build_row(view_id: str, key: ViewKey, shard: str, offsets: Sequence[int], sizes: Sequence[int]) -> ViewRecord:
    return ViewRecord(
        view_id=view_id,
        split=key.split,
        clip_id=key.clip_id,
        track=key.track,
        sample_index=key.sample_index,
        shard=shard,
        object_offset=offsets[0],
        object_bytes=sizes[0],
        scene_offset=offsets[1],
        scene_bytes=sizes[1],
        mask_offset=offsets[2],
        mask_bytes=sizes[2],
        plate_offset=0,
        plate_bytes=0,
    )
