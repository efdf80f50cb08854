"""Frames of an item that is no video: which of its pictures are kept, each with its given mask."""

from __future__ import annotations

from pathlib import Path

from data_prep.fanout import Product
from data_prep.frames.pictures import (
    MASK_SUFFIX,
    BadPicture,
    fit_mask,
    is_black_and_white,
    load_objects,
    load_picture,
    read_digest,
)
from data_prep.frames.sampling import STAGE, FrameFilter, compute_sample_indices, fit_side
from data_prep.positions import compute_positions
from imprint.core.params import ExtractFrames
from imprint.core.pixels import encode_image
from imprint.core.records import ClipRecord, FrameRecord, Rejection


def extract_pictures(clip: ClipRecord, params: ExtractFrames, root: Path) -> Product[FrameRecord]:
    """Sharp, distinct pictures of the item; those of a sequence in time are sampled as a video's frames are."""
    filter_ = FrameFilter(clip, params)
    masks = [root / clip.masks_path / name for name in clip.masks]
    black_and_white = clip.order == "time" and bool(masks) and is_black_and_white(masks)
    wanted = list_samples(clip, params.sample_fps)
    seen: set[str] = set()
    for sample_index, source_index, number in wanted[: params.max_frames_per_clip]:
        file = root / clip.path / clip.frames[number]
        try:
            digest = read_digest(file)
            if clip.order != "time":
                _check_new(file, digest, seen)
            if masks:
                read_digest(masks[number])
            picture = load_picture(file)
            small = fit_side(picture, params.max_side_px)
            if masks:
                ids = load_objects(masks[number], clip.order, black_and_white)
                ids = fit_mask(ids, picture.shape[:2], small.shape[:2])
        except BadPicture as bad:
            filter_.reject(sample_index, *bad.args)
            continue
        if filter_.add(small, sample_index, source_index) and masks:
            filter_.members.append((f"{sample_index:06d}{MASK_SUFFIX}", encode_image(ids)))
    if len(wanted) > params.max_frames_per_clip:
        detail = f"{len(wanted) - params.max_frames_per_clip} pictures after the first {params.max_frames_per_clip}"
        filter_.rejections.append(Rejection(stage=STAGE, item=clip.clip_id, reason="over_max_frames", detail=detail))
    return Product(filter_.members, filter_.rows, filter_.rejections)


def list_samples(clip: ClipRecord, sample_fps: float) -> list[tuple[int, int, int]]:
    """(sample index, place in the sequence, place in `clip.frames`) of the pictures that are looked at."""
    positions = compute_positions(clip.frames, clip.order)
    if clip.order != "time":
        return [(position, position, position) for position in positions]
    numbers = {position: number for number, position in enumerate(positions)}
    sampled = enumerate(compute_sample_indices(clip.num_frames, clip.fps, sample_fps))
    return [(sample, position, numbers[position]) for sample, position in sampled if position in numbers]


def _check_new(file: Path, digest: str, seen: set[str]) -> None:
    """Pictures of a set are near-duplicates of each other only if they are the same file twice."""
    if digest in seen:
        raise BadPicture("duplicate", f"{file.name} is the same file as another of its folder")
    seen.add(digest)
