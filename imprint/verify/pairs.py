"""A small pair set of any size, made of the shipped demo picture, where there are no shards of that size."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from imprint.core.files import write_json_atomic
from imprint.core.params import PackShards
from imprint.core.pixels import load_image, resize_image
from imprint.core.prepare import encode_view
from imprint.core.records import PairKind, PairRecord, Split, ViewRecord, build_id, save_records

_MIN_CLIPS: dict[Split, int] = {"train": 4, "val": 2, "test": 2}
_VIEWS = 4
_PARTS = ("object.png", "scene.jpg", "mask.png")
_TRACK = 1


def write_pairs(folder: Path, inputs: Path, *, params: PackShards, batch_size: int) -> Path:
    """Write shards of `params`' sizes, with a batch of every kind of pair at least: the object of `inputs` turned and
    moved on its background, the same bytes at every call."""
    folder.mkdir(parents=True)
    views: list[ViewRecord] = []
    pairs: list[PairRecord] = []
    for split, least in _MIN_CLIPS.items():
        count = max(least, -(-batch_size // _VIEWS)) if split == "train" else least
        clips = [f"{split}{number}" for number in range(count)]
        views += _write_shard(folder / f"{split}-00000.tar", clips, split=split, inputs=inputs, params=params)
        pairs += [pair for clip in clips for pair in _list_pairs(clip, split)]
    save_records(folder / "views.parquet", ViewRecord, views)
    save_records(folder / "pairs.parquet", PairRecord, pairs)
    sources = [{"source": "demo/inputs", "licence": "CC0-1.0", "items": len(views)}]
    write_json_atomic(folder / "licences.json", sources)
    return folder


def draw_scene(inputs: Path, seed: list[int], side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 [side, side, 3] and the object's mask: the demo object, turned and tinted, on its background."""
    rng = np.random.default_rng(seed)
    shown = resize_image(load_image(inputs / "object.png", "object"), (side_px, side_px))
    scene = resize_image(load_image(inputs / "background.png", "background")[..., :3], (side_px, side_px))
    turn = cv2.getRotationMatrix2D(
        (side_px / 2, side_px / 2), float(rng.uniform(-40, 40)), float(rng.uniform(0.4, 0.6))
    )
    turn[:, 2] += rng.uniform(-0.1, 0.1, 2) * side_px
    shown = np.asarray(cv2.warpAffine(shown, turn, (side_px, side_px)))
    mask = shown[..., 3] > 127
    tint = np.random.default_rng(seed[:-1]).uniform(0.4, 1.0, 3)  # a clip's object has one colour
    return np.where(mask[..., None], shown[..., :3] * tint, scene).astype(np.uint8), mask


def _write_shard(path: Path, clips: list[str], *, split: Split, inputs: Path, params: PackShards) -> list[ViewRecord]:
    keys = [(clip, view) for clip in clips for view in range(_VIEWS)]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip, view in keys:
            image, mask = draw_scene(inputs, [*clip.encode(), view], 2 * params.size_px)
            for name, data in zip(_PARTS, encode_view(image, mask, params), strict=True):
                info = tarfile.TarInfo(f"{build_id(clip, _TRACK, view)}.{name}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
    with tarfile.open(path) as tar:
        spans = {info.name: (info.offset_data, info.size) for info in tar}
    return [_build_row(clip, view, split=split, shard=path.name, spans=spans) for clip, view in keys]


def _build_row(clip: str, view: int, *, split: Split, shard: str, spans: dict[str, tuple[int, int]]) -> ViewRecord:
    view_id = build_id(clip, _TRACK, view)
    (object_at, object_bytes), (scene_at, scene_bytes), (mask_at, mask_bytes) = (
        spans[f"{view_id}.{name}"] for name in _PARTS
    )
    return ViewRecord(
        view_id=view_id,
        split=split,
        clip_id=clip,
        track=_TRACK,
        sample_index=view,
        shard=shard,
        object_offset=object_at,
        object_bytes=object_bytes,
        scene_offset=scene_at,
        scene_bytes=scene_bytes,
        mask_offset=mask_at,
        mask_bytes=mask_bytes,
        plate_offset=0,
        plate_bytes=0,
    )


def _list_pairs(clip: str, split: Split) -> Iterator[PairRecord]:
    for reference in range(_VIEWS):
        for target in range(_VIEWS):
            kinds: tuple[PairKind, ...] = ("single",) if reference == target else ("multiview", "video")
            for kind in kinds:
                yield PairRecord(
                    pair_id=build_id(kind, clip, _TRACK, reference, target),
                    kind=kind,
                    split=split,
                    clip_id=clip,
                    track=_TRACK,
                    reference_index=reference,
                    target_index=target,
                    gap_frames=abs(reference - target),
                    gap_s=0.0,
                    view_change=0.0,
                )
