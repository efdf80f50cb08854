"""Tracks where identity is known and not to be found: by given ids, or because a set's pictures show one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.masks.instances import Instance, describe_box, measure_given
from data_prep.masks.tracking import Track
from imprint.core.geometry import box_from_mask
from imprint.core.params import SegmentObjects
from imprint.core.pixels import decode_image
from imprint.core.records import FrameRecord, Rejection

STAGE = "segment_objects"


def find_given(
    frames: Sequence[FrameRecord], members: Mapping[str, bytes], params: SegmentObjects
) -> tuple[list[dict[int, Instance]], list[Rejection]]:
    """Object id => instance of each frame, from the masks beside the pictures (`extract_frames` put them there)."""
    found, rejections = [], []
    for frame in frames:
        image = decode_image(members[frame.member], frame.member)
        name = frame.member.replace(".jpg", ".mask.png")
        ids = decode_image(members[name], name)[..., 0]
        measured = {int(number): measure_given(image, ids == number, params) for number in np.unique(ids[ids > 0])}
        found.append({number: result for number, result in measured.items() if isinstance(result, Instance)})
        bad = {number: result for number, result in measured.items() if isinstance(result, str)}
        rejections += [
            _reject(frame, reason, f"given object {number}, {describe_box(box_from_mask(ids == number))}")
            for number, reason in bad.items()
        ]
        if not measured:
            rejections.append(_reject(frame, "empty_mask", "the given mask holds no object"))
    return found, rejections


def read_first_mask(
    frames: Sequence[FrameRecord], members: Mapping[str, bytes]
) -> tuple[list[np.ndarray], list[Rejection]]:
    """The masks of a video's first frame, bool [h, w] each, by their ids; or a row that there are none."""
    name = frames[0].member.replace(".jpg", ".mask.png")
    if name not in members:
        return [], [_reject(frames[0], "no_first_mask", "the video's first frame was left out, or its mask")]
    ids = decode_image(members[name], name)[..., 0]
    return [ids == number for number in np.unique(ids[ids > 0])], []


def follow_ids(found: Sequence[Mapping[int, Instance]]) -> list[Track]:
    """One track per id."""
    tracks: dict[int, Track] = {}
    for position, instances in enumerate(found):
        for number, instance in instances.items():
            tracks.setdefault(number, Track(given_id=number)).append(position, instance)
    return [tracks[number] for number in sorted(tracks)]


def take_largest(
    frames: Sequence[FrameRecord], found: Sequence[Sequence[Instance]]
) -> tuple[list[Track], list[Rejection]]:
    """The largest object of every picture of a set, as one track; the others are left out."""
    track, rejections = Track(), []
    for position, instances in enumerate(found):
        ordered = sorted(instances, key=lambda instance: (-instance.area_px, instance.box))
        if ordered:
            track.append(position, ordered[0])
        rejections += [
            _reject(frames[position], "not_the_largest", f"of the photo's objects, {describe_box(other.box)}")
            for other in ordered[1:]
        ]
    return [track] if track.frames else [], rejections


def take_each(found: Sequence[Sequence[Instance]]) -> list[Track]:
    """Every object of every picture as a track of its own."""
    return [Track([position], [instance]) for position, instances in enumerate(found) for instance in instances]


def _reject(frame: FrameRecord, reason: str, detail: str) -> Rejection:
    return Rejection(stage=STAGE, item=f"{frame.clip_id}:{frame.sample_index}", reason=reason, detail=detail)
