"""Stage `segment_objects`: object masks of every frame, found or given, as tracks; one tar of 8-bit PNG per clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from data_prep.masks.following import Prompt, choose_prompts, follow_prompts
from data_prep.masks.grouping import find_given, follow_ids, read_first_mask, take_each, take_largest
from data_prep.masks.instances import Instance, describe_box, find_instances, uncover
from data_prep.masks.separation import Footage, link_apart
from data_prep.masks.tracking import Track, link_tracks
from data_prep.tars import read_tar
from imprint.core.files import compute_digest, compute_file_digest, compute_path_digest
from imprint.core.geometry import Box
from imprint.core.params import Params, SegmentObjects
from imprint.core.pixels import decode_image, encode_image
from imprint.core.records import ClipRecord, FrameRecord, MaskRecord, Rejection, load_records
from imprint.core.stage import open_stage
from imprint.segmentation import build_follower, build_separator, build_session
from imprint.segmentation.networks import identify

STAGE = "segment_objects"
CLIPS, FRAMES = Path("data/clips.parquet"), Path("data/frames")
OUT = Path("data/masks")
MAX_TOLD_BOXES = 3  # per frame and reason: noise has many
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
    run = open_stage(STAGE, section, [CLIPS, FRAMES, *list_weights_folders(section)], __name__, root)
    records = {clip.clip_id: clip for clip in load_records(root / CLIPS, ClipRecord)}
    clips = group_by_clip(load_records(root / FRAMES / "index.parquet", FrameRecord))
    model = identify(section.model)
    weights = [compute_path_digest(folder) for folder in list_weights_folders(section)]
    jobs = []
    for clip_id, frames in clips.items():
        tar, clip = root / FRAMES / f"{clip_id}.tar", records[clip_id]
        content = compute_digest(f"{compute_file_digest(tar)} {frames} {model} {weights} {clip.order}")
        folder = run.clips_dir / compute_product_key(STAGE, section, content=content, module=__name__)
        jobs.append(Job(clip_id, folder, MaskRecord, segment_clip, ClipJob(clip, frames, tar, section)))
    restore_products(jobs, STAGE, OUT, root)
    check_models(section, [records[job.clip_id] for job in jobs if not job.folder.is_dir()])
    make_products(jobs, "segment_objects: clips", section.workers, share)
    if share:
        return
    rows, rejections = collect(jobs)
    save_ledger(STAGE, rejections, root)
    num_tracks = len({(row.clip_id, row.track) for row in rows})
    print_counts(STAGE, f"{len(rows)} masks in {num_tracks} tracks of {len(clips)} clips", rejections)
    check_share(STAGE, "objects", len(rejections), len(rows), section.max_rejected_share)
    publish(jobs, rows, run, OUT, root)


def list_weights_folders(params: SegmentObjects) -> list[Path]:
    """The folder of SAM 2's weights, where it is in use and is no hub id, which its commit names."""
    folder = Path(params.sam2.weights)
    return [folder] if params.backend == "sam2" and params.sam2.weights and folder.is_dir() else []


def check_models(params: SegmentObjects, clips: Sequence[ClipRecord]) -> None:
    """Open what the clips need once: a model that cannot be had is one error, and weights are downloaded once."""
    follows = params.backend == "sam2"
    if any(not clip.has_all_masks and not (follows and clip.masks) for clip in clips):
        build_session(params)
    if follows and any(clip.order == "time" and not clip.has_all_masks for clip in clips):
        build_follower(params.sam2)


def group_by_clip(frames: Sequence[FrameRecord]) -> dict[str, tuple[FrameRecord, ...]]:
    """Frames of each clip, both in the index's order."""
    groups: dict[str, list[FrameRecord]] = {}
    for frame in frames:
        groups.setdefault(frame.clip_id, []).append(frame)
    return {clip_id: tuple(rows) for clip_id, rows in groups.items()}


def segment_clip(job: ClipJob) -> Product[MaskRecord]:
    """Objects of all frames of one clip, then the tracks; what identity is known by follows from the clip's order."""
    if job.clip.has_all_masks:
        given, rejections = find_given(job.frames, read_tar(job.tar), job.params)
        tracks = follow_ids(given)
    elif job.clip.order == "time" and job.params.backend == "sam2":
        tracks, rejections = follow_objects(job)
    else:
        found, rejections = find_objects(job)
        if job.clip.masks:
            detail = "it would be followed with segment_objects.backend: sam2"
            rejections.append(Rejection(stage=STAGE, item=job.clip.clip_id, reason="unused_first_mask", detail=detail))
        if job.clip.order == "time":
            tracks, joined = link_objects(job, found)
            rejections += joined
        elif job.clip.order == "views":
            tracks, others = take_largest(job.frames, found)
            rejections += others
        else:
            tracks = take_each(found)
    kept, rejected_tracks = select_tracks(tracks, job)
    masks, rows, covered = draw_tracks(kept, job.frames, job.params)
    return Product(masks, rows, rejections + rejected_tracks + covered)


def follow_objects(job: ClipJob) -> tuple[list[Track], list[Rejection]]:
    """Tracks of a video by SAM 2, from its given first mask, or else from the sure tracks that the network gives."""
    members = read_tar(job.tar)
    if job.clip.masks:
        masks, rejections = read_first_mask(job.frames, members)
        prompts = [Prompt(0, mask) for mask in masks]
    else:
        found, rejections = find_objects(job)
        tracks, joined = link_objects(job, found)
        sure, others = select_tracks(tracks, job)
        rejections += joined + others
        prompts = choose_prompts(list(sure.values()), job.frames)
    tracks, lost = follow_prompts(prompts, job.frames, open_reader(job), job.params)
    return tracks, rejections + lost


def link_objects(job: ClipJob, found: Sequence[Sequence[Instance]]) -> tuple[list[Track], list[Rejection]]:
    """Tracks of what the network found in a video; objects that touch are told apart if something can."""
    separator = build_separator(job.params) if job.params.touching.judged_frames else None
    if separator is None:
        return link_tracks(job.frames, found, job.params.min_link_iou), []
    return link_apart(Footage(job.frames, open_reader(job), separator.answer, job.params), found)


def open_reader(job: ClipJob) -> Callable[[int], np.ndarray]:
    """What gives the RGB frame at a position of the clip."""
    members = read_tar(job.tar)

    def read(position: int) -> np.ndarray:
        member = job.frames[position].member
        return decode_image(members[member], f"{job.tar}:{member}")

    return read


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
        for position, instance in zip(track.frames, track.instances, strict=True):
            item = f"{job.frames[position].clip_id}:{job.frames[position].sample_index}"
            where = f"{detail}, {describe_box(instance.box)}"
            rejections.append(Rejection(stage=STAGE, item=item, reason=reason, detail=where))
    return kept, rejections


def draw_tracks(
    tracks: Mapping[int, Track], frames: Sequence[FrameRecord], params: SegmentObjects
) -> tuple[list[tuple[str, bytes]], list[MaskRecord], list[Rejection]]:
    """PNG members, grey = track number, and their rows by frame; frames without an object have no member.

    A pixel that several objects claim is the smallest one's: it lies in front, or inside. The rows tell of what is
    drawn, and what others cover so far that it is no object any more is left out.
    """
    by_frame: dict[int, list[tuple[int, Instance]]] = {}
    for number, track in tracks.items():
        for position, instance in zip(track.frames, track.instances, strict=True):
            by_frame.setdefault(position, []).append((number, instance))
    members, rows, rejections = [], [], []
    for position, objects in sorted(by_frame.items()):
        frame = frames[position]
        canvas, seen = paint_objects(dict(objects), (frame.height_px, frame.width_px), params)
        drawn = [_build_row(frame, number, seen[number]) for number, _ in objects if number in seen]
        if drawn:
            members.append((drawn[0].member, encode_image(canvas)))
        rows += drawn
        item = f"{frame.clip_id}:{frame.sample_index}"
        rejections += [
            Rejection(stage=STAGE, item=item, reason="covered", detail=f"track {number}, {describe_box(instance.box)}")
            for number, instance in objects
            if number not in seen
        ]
    return members, rows, rejections


def paint_objects(
    objects: Mapping[int, Instance], frame_hw: tuple[int, int], params: SegmentObjects
) -> tuple[np.ndarray, dict[int, Instance]]:
    """uint8 [h, w] of the objects' numbers, 0 for none, and of each the instance that is seen there."""
    canvas, seen = np.zeros(frame_hw, np.uint8), dict[int, Instance]()
    for number, instance in sorted(objects.items(), key=lambda found: -found[1].area_px):
        canvas[instance.box.slices][instance.mask] = number
    for number, instance in objects.items():
        left = uncover(instance, instance.mask & (canvas[instance.box.slices] == number), frame_hw, params)
        seen |= {number: left} if left else {}
    if len(seen) < len(objects):  # what is left of the others is nobody's, or what lies below them
        return paint_objects({number: objects[number] for number in seen}, frame_hw, params)
    return canvas, seen


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


def _explain_objects(frame: FrameRecord, rejected: Sequence[tuple[str, Box]]) -> list[Rejection]:
    """One row per reason: how many objects, and where the largest of them are."""
    boxes: dict[str, list[Box]] = {}
    for reason, box in sorted(rejected, key=lambda row: (row[0], -row[1].area_px, row[1])):
        boxes.setdefault(reason, []).append(box)
    item = f"{frame.clip_id}:{frame.sample_index}"
    return [
        Rejection(
            stage=STAGE,
            item=item,
            reason=reason,
            detail=", ".join([f"{len(of)} objects of the frame", *(describe_box(box) for box in of[:MAX_TOLD_BOXES])]),
        )
        for reason, of in boxes.items()
    ]
