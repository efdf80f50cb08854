"""Stage `segment_objects`: object masks of every frame, found or given, as tracks; one tar of 8-bit PNG per clip."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.fanout import (
    Job,
    Product,
    collect,
    compute_product_key,
    make_products,
    parse_chunk,
    publish,
    restore_products,
)
from data_prep.ledger import check_share, print_counts, save_ledger
from data_prep.masks.grouping import find_given, follow_ids, take_each, take_largest
from data_prep.masks.instances import Instance, find_instances
from data_prep.masks.tracking import Track, link_tracks
from data_prep.tars import read_tar
from imprint.core.files import compute_digest, compute_file_digest
from imprint.core.params import Params, SegmentObjects
from imprint.core.pixels import decode_image, encode_image
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, Rejection, load_records
from imprint.core.stage import open_stage
from imprint.segmentation import build_session

STAGE = "segment_objects"
CODE = (
    "data_prep.masks",
    "data_prep.fanout",
    "data_prep.ledger",
    "data_prep.tars",
    "imprint.core",
    "imprint.segmentation",
)
CLIPS, FRAMES = Path("data/clips.parquet"), Path("data/frames")
OUT = Path("data/masks")
MAX_TRACKS = 255  # a mask's pixel is one byte


@dataclass(frozen=True)
class ClipJob:
    """What a worker needs for one clip."""

    clip: ClipRecord
    frames: tuple[FrameRecord, ...]
    tar: Path
    params: SegmentObjects


def run_segment_objects(params: Params, root: Path = Path("."), *, chunk: str | None = None) -> None:
    """Write `data/masks/` and the ledger; with `chunk` (`i/n`) only make the products of that share of the clips."""
    section, share = params.segment_objects, parse_chunk(chunk) if chunk else None
    run = open_stage(STAGE, section, [CLIPS, FRAMES], CODE, root)
    records = {clip.clip_id: clip for clip in load_records(root / CLIPS, ClipRecord)}
    clips = group_by_clip(load_records(root / FRAMES / "index.parquet", FrameRecord))
    model = compute_file_digest(Path(section.model)) if os.path.isfile(section.model) else section.model
    jobs = []
    for clip_id, frames in clips.items():
        tar, clip = root / FRAMES / f"{clip_id}.tar", records[clip_id]
        content = compute_digest(f"{compute_file_digest(tar)} {frames} {model} {clip.order}")
        folder = run.clips_dir / compute_product_key(run, content, CODE)
        jobs.append(Job(clip_id, folder, MaskRecord, segment_clip, ClipJob(clip, frames, tar, section)))
    restore_products(jobs, STAGE, OUT, root)
    if any(not job.folder.is_dir() and not records[job.clip_id].masks for job in jobs):
        build_session(section)  # a model that cannot be had is one error, and weights are downloaded once
    make_products(jobs, "segment_objects: clips", section.workers, share)
    if share:
        return
    rows, rejections = collect(jobs)
    save_ledger(STAGE, rejections, root)
    num_tracks = len({(row.clip_id, row.track) for row in rows})
    print_counts(STAGE, f"{len(rows)} masks in {num_tracks} tracks of {len(clips)} clips", rejections)
    check_share(STAGE, "objects", len(rejections), len(rows), section.max_rejected_share)
    publish(jobs, rows, run, OUT, root)


def group_by_clip(frames: Sequence[FrameRecord]) -> dict[str, tuple[FrameRecord, ...]]:
    """Frames of each clip, both in the index's order."""
    groups: dict[str, list[FrameRecord]] = {}
    for frame in frames:
        groups.setdefault(frame.clip_id, []).append(frame)
    return {clip_id: tuple(rows) for clip_id, rows in groups.items()}


def segment_clip(job: ClipJob) -> Product[MaskRecord]:
    """Objects of all frames of one clip, then the tracks; what identity is known by follows from the clip's order."""
    if job.clip.masks:
        given, rejections = find_given(job.frames, read_tar(job.tar), job.params)
        tracks = follow_ids(given)
    else:
        found, rejections = find_objects(job)
        if job.clip.order == "time":
            tracks = link_tracks(job.frames, found, job.params.min_link_iou)
        elif job.clip.order == "views":
            tracks, others = take_largest(job.frames, found)
            rejections += others
        else:
            tracks = take_each(found)
    kept, rejected_tracks = select_tracks(tracks, job)
    masks, rows = draw_tracks(kept, job.frames)
    return Product(masks, rows, rejections + rejected_tracks)


def find_objects(job: ClipJob) -> tuple[list[list[Instance]], list[Rejection]]:
    """Objects that the network finds in each frame of one clip."""
    found, rejections = [], []
    members, size = read_tar(job.tar), job.params.batch_size
    session = build_session(job.params)
    for start in range(0, len(job.frames), size):
        batch = job.frames[start : start + size]
        images = [decode_image(members[frame.member], f"{job.tar}:{frame.member}") for frame in batch]
        for frame, image, probability in zip(batch, images, session.predict(images), strict=True):
            instances, rejected = find_instances(image, probability, job.params)
            found.append(instances)
            rejections += _explain_objects(frame, rejected)
    return found, rejections


def select_tracks(tracks: Sequence[Track], job: ClipJob) -> tuple[dict[int, Track], list[Rejection]]:
    """Number => track of those that are sure, long and few enough; one rejection per object of the others.

    A given object keeps its id. Views and single pictures need no length.
    """
    min_frames = job.params.min_track_frames if job.clip.order == "time" else 1
    kept: dict[int, Track] = {}
    rejections = []
    for number, track in enumerate(tracks, start=1):
        reason = "short_track" if len(track.frames) < min_frames else None
        reason = "in_doubt" if track.doubtful else reason
        reason = "over_255_tracks" if reason is None and len(kept) == MAX_TRACKS else reason
        if reason is None:
            kept[track.given_id or len(kept) + 1] = track
            continue
        detail = f"candidate {number} of {len(track.frames)} frames"
        items = [f"{job.frames[position].clip_id}:{job.frames[position].sample_index}" for position in track.frames]
        rejections += [Rejection(stage=STAGE, item=item, reason=reason, detail=detail) for item in items]
    return kept, rejections


def draw_tracks(
    tracks: Mapping[int, Track], frames: Sequence[FrameRecord]
) -> tuple[list[tuple[str, bytes]], list[MaskRecord]]:
    """PNG members, grey = track number, and their rows by frame; frames without an object have no member."""
    by_frame: dict[int, list[tuple[int, Instance]]] = {}
    for number, track in tracks.items():
        for position, instance in zip(track.frames, track.instances, strict=True):
            by_frame.setdefault(position, []).append((number, instance))
    members, rows = [], []
    for position, objects in sorted(by_frame.items()):
        frame = frames[position]
        canvas = np.zeros((frame.height_px, frame.width_px), np.uint8)
        for number, instance in objects:
            canvas[instance.box.slices][instance.mask] = number
            rows.append(_build_row(frame, number, instance))
        members.append((rows[-1].member, encode_image(canvas)))
    return members, rows


def _build_row(frame: FrameRecord, number: int, instance: Instance) -> MaskRecord:
    return MaskRecord(
        clip_id=frame.clip_id,
        track=number,
        sample_index=frame.sample_index,
        time_s=frame.time_s,
        shot=frame.shot,
        box=(instance.box.y0, instance.box.x0, instance.box.y1, instance.box.x1),
        area_share=instance.area_share,
        confidence=instance.confidence,
        boundary_confidence=instance.boundary_confidence,
        border_contact=instance.border_contact,
        member=f"{frame.sample_index:06d}.png",
    )


def _explain_objects(frame: FrameRecord, rejected: Counter[str]) -> list[Rejection]:
    item = f"{frame.clip_id}:{frame.sample_index}"
    return [
        Rejection(stage=STAGE, item=item, reason=reason, detail=f"{count} objects of the frame")
        for reason, count in sorted(rejected.items())
    ]
