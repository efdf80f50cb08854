"""A small `data/shards` folder of coloured shapes, made with the project's own preparation path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from data_prep.shards.packing import ViewKey, encode_view, write_shard
from imprint.core.files import write_json_atomic
from imprint.core.params import PackShards
from imprint.core.records import PairKind, PairRecord, Split, ViewRecord, build_id, save_records

FRAME_PX = 96
VIEWS_PER_CLIP = 4
CLIPS: dict[Split, range] = {"train": range(4), "val": range(4, 7), "test": range(7, 10)}
SOURCES = [{"source": "tests/synthetic.py", "licence": "CC0-1.0", "items": 10}]
KINDS: tuple[PairKind, ...] = ("multiview", "video", "single")


def write_shards(
    directory: Path,
    *,
    size_px: int = 64,
    reference_px: int = 0,
    kinds: tuple[PairKind, ...] = KINDS,
    num_pairs: int = 0,
) -> Path:
    """Clips of one turning shape each, four views, every kind of pair; `num_pairs` limits those of a kind in train.

    reference_px: by default `size_px`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    sides = {"size_px": size_px, "reference_px": reference_px or size_px}
    params = PackShards(**sides, scene_context=2.0, jpeg_quality=95, shard_mb=64.0)
    rows: list[ViewRecord] = []
    pairs: list[PairRecord] = []
    for split, clips in CLIPS.items():
        keys = [ViewKey(split, f"clip{clip:02d}", 1, view) for clip in clips for view in range(VIEWS_PER_CLIP)]
        views = [(key, encode_view(*draw_frame(int(key.clip_id[4:]), key.sample_index), params)) for key in keys]
        rows += write_shard(directory / f"{split}-00000.tar", views)
        for kind in kinds:
            of_kind = [pair for clip in clips for pair in list_pairs(f"clip{clip:02d}", split) if pair.kind == kind]
            # spread over the clips, so that a few pairs show different objects
            limit = num_pairs if num_pairs and split == "train" else len(of_kind)
            pairs += [of_kind[index * len(of_kind) // limit] for index in range(limit)]
    save_records(directory / "views.parquet", ViewRecord, rows)
    save_records(directory / "pairs.parquet", PairRecord, pairs)
    write_json_atomic(directory / "licences.json", SOURCES)
    return directory


def draw_frame(clip: int, view: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB uint8 frame and bool mask: a two-coloured shape on a shaded floor, turned by the view."""
    rng = np.random.default_rng([7, clip])
    colours = rng.integers(60, 256, size=(2, 3))
    shade = np.linspace(90, 170, FRAME_PX, dtype=np.float32)[:, None, None]
    image = np.repeat(np.broadcast_to(shade, (FRAME_PX, FRAME_PX, 1)), 3, axis=2) + rng.normal(0, 4, (1, 1, 3))
    image = np.clip(image, 0, 255).astype(np.uint8)
    angle = np.deg2rad(20.0 * view) + np.arange(3 + clip % 4) * 2 * np.pi / (3 + clip % 4)
    corners = np.stack([48 + view + 18 * np.cos(angle), 52 + 18 * np.sin(angle)], axis=1).round().astype(np.int32)
    mask = np.zeros((FRAME_PX, FRAME_PX), np.uint8)
    cv2.fillPoly(mask, [corners], 1)
    image[mask > 0] = colours[0]
    image[(mask > 0) & (np.arange(FRAME_PX)[None, :] > 48)] = colours[1]
    return image, mask > 0


def list_pairs(clip_id: str, split: Split) -> Iterator[PairRecord]:
    """Every kind: multiview and video between different views, single of each view with itself."""
    for reference in range(VIEWS_PER_CLIP):
        for target in range(VIEWS_PER_CLIP):
            kinds: tuple[PairKind, ...] = ("single",) if reference == target else ("multiview", "video")
            yield from (_build_pair(kind, clip_id, split, reference, target) for kind in kinds)


def _build_pair(kind: PairKind, clip_id: str, split: Split, reference: int, target: int) -> PairRecord:
    return PairRecord(
        pair_id=build_id(kind, clip_id, 1, reference, target),
        kind=kind,
        split=split,
        clip_id=clip_id,
        track=1,
        reference_index=reference,
        target_index=target,
        gap_frames=abs(reference - target),
        gap_s=abs(reference - target) / 6.0,
        view_change=0.2,
    )
