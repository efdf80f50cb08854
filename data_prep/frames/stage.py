"""Stage `extract_frames`: sharp, distinct frames of every clip, shots and given masks; one tar per clip."""

from __future__ import annotations

from collections.abc import Iterator
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
from data_prep.frames.pictures import MASK_SUFFIX, BadPicture, load_first_mask, read_digest
from data_prep.frames.readers import Reader, ReadFailure, ReadInterrupted, get_readers, read_frames
from data_prep.frames.sampling import STAGE, FrameFilter, compute_sample_indices
from data_prep.frames.sequences import extract_pictures
from data_prep.ledger import INTERRUPTED, check_share, print_counts, save_ledger
from imprint.core.params import ExtractFrames, Params
from imprint.core.pixels import encode_image
from imprint.core.records import ClipRecord, FrameRecord, Rejection, load_records
from imprint.core.stage import open_stage

CLIPS = Path("data/clips.parquet")
OUT = Path("data/frames")


@dataclass(frozen=True)
class ClipJob:
    """What a worker needs for one clip."""

    clip: ClipRecord
    root: Path
    params: ExtractFrames
    readers: tuple[Reader, ...]


def run_extract_frames(
    params: Params, root: Path = Path("."), *, chunk: str | None = None, readers: tuple[Reader, ...] | None = None
) -> None:
    """Write `data/frames/` and the ledger; with `chunk` (`i/n`) only make the products of that share of the clips.

    readers: tried in turn for each clip; this machine's by default.
    """
    section, share = params.extract_frames, parse_chunk(chunk) if chunk else None
    run = open_stage(STAGE, section, [CLIPS], __name__, root)
    clips = load_records(root / CLIPS, ClipRecord)
    chosen = readers or get_readers()
    jobs = [
        Job(
            clip_id=clip.clip_id,
            folder=run.clips_dir / compute_product_key(STAGE, section, content=clip.clip_id, module=__name__),
            kind=FrameRecord,
            make=extract_clip,
            argument=ClipJob(clip, root, section, chosen),
        )
        for clip in clips
    ]
    restore_products(jobs, STAGE, OUT, root)
    make_products(jobs, "extract_frames: clips", section.workers, share)
    if share:
        return
    rows, rejections = collect(jobs)
    save_ledger(STAGE, rejections, root)
    print_counts(STAGE, f"{len(rows)} frames of {len(clips)} clips", rejections)
    check_share(STAGE, "frames", len(rejections), len(rows), section.max_rejected_share)
    publish(jobs, rows, run, OUT, root)


def extract_clip(job: ClipJob) -> Product[FrameRecord]:
    """Frames of one clip; of a video by the first reader that can read all of it, or that came furthest."""
    if job.clip.frames:
        return extract_pictures(job.clip, job.params, job.root)
    wanted = compute_sample_indices(job.clip.num_frames, job.clip.fps, job.params.sample_fps)
    indices = wanted[: job.params.max_frames_per_clip]
    best, reasons, reason = FrameFilter(job.clip, job.params), [], "undecodable"
    if fault := find_fault(job.root / job.clip.path):
        return Product([], [], [_explain_lost(job.clip.clip_id, len(indices), INTERRUPTED, fault)])
    for reader in job.readers:
        attempt = FrameFilter(job.clip, job.params)
        try:
            frames = read_frames(reader, str(job.root / job.clip.path), indices, job.params.deadline_s)
            attempt.run(_check_sizes(frames, job.clip), indices)
        except ReadFailure as failure:
            reasons.append(f"{reader.__name__}: {failure}")
            reason = INTERRUPTED if isinstance(failure, ReadInterrupted) else reason
            best = max(best, attempt, key=_count_seen)
            continue
        best = attempt
        break
    add_first_mask(best, job)
    lost = len(indices) - _count_seen(best)
    rejections = list(best.rejections)
    if lost:
        rejections.append(_explain_lost(job.clip.clip_id, lost, reason, "; ".join(reasons)))
    if len(wanted) > len(indices):
        detail = f"{len(wanted) - len(indices)} sampled frames after the first {len(indices)}"
        rejections.append(Rejection(stage=STAGE, item=job.clip.clip_id, reason="over_max_frames", detail=detail))
    return Product(best.members, best.rows, rejections)


def find_fault(file: Path) -> str:
    """Why no byte of a file can be had; empty if one can."""
    try:
        with file.open("rb") as opened:
            opened.read(1)
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    return ""


def add_first_mask(frames: FrameFilter, job: ClipJob) -> None:
    """Put a video's given mask beside its first frame, where that was kept."""
    if not job.clip.masks or not frames.rows or frames.rows[0].sample_index != 0:
        return
    try:
        read_digest(job.root / job.clip.masks_path / job.clip.masks[0])
        ids = load_first_mask(job.clip, (frames.rows[0].height_px, frames.rows[0].width_px), job.root)
    except BadPicture as bad:
        frames.reject(0, *bad.args)
        return
    frames.members.append((frames.rows[0].member.replace(".jpg", MASK_SUFFIX), encode_image(ids)))


def _count_seen(frames: FrameFilter) -> int:
    return len(frames.rows) + len(frames.rejections)


def _explain_lost(clip_id: str, lost: int, reason: str, detail: str) -> Rejection:
    return Rejection(stage=STAGE, item=clip_id, reason=reason, detail=f"{lost} sampled frames: {detail}")


def _check_sizes(frames: Iterator[np.ndarray], clip: ClipRecord) -> Iterator[np.ndarray]:
    """decord does not turn frames upright and may return wrong ones; the size shows the first."""
    for frame in frames:
        if frame.shape[:2] != (clip.height_px, clip.width_px):
            raise ReadFailure(
                f"frame of {frame.shape[1]} x {frame.shape[0]} px, probed {clip.width_px} x {clip.height_px}"
            )
        yield frame
