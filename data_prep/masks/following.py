"""Tracks of the second backend: SAM 2 follows each object through its shot, from one mask, forward and backward.

An object's mask is shown once: one that was given, or, of a track that the first backend is sure of, the one that lies
least on the frame's border. All objects whose masks lie in one frame are followed together, and ids are never mixed: a
pixel that several claim is the one's whose logit is highest, so that objects in contact stay apart. Precision before
recall here too: where two ids lie on each other neither is used, and an id whose object is lost for long, or looks
different at once, goes on as another track.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from data_prep.masks.instances import Instance, describe_box, measure_object
from data_prep.masks.tracking import MIN_INSIDE, Track, draw_instance, is_near, looks_the_same
from imprint.core.geometry import box_from_mask
from imprint.core.params import SegmentObjects
from imprint.core.records import FrameRecord, Rejection
from imprint.segmentation import build_follower

if TYPE_CHECKING:
    from imprint.segmentation.following import ObjectFollower

STAGE = "segment_objects"


@dataclass(frozen=True)
class Prompt:
    """An object's mask, bool [h, w], in the frame at `position` of the clip."""

    position: int
    mask: np.ndarray


@dataclass
class Shot:
    """One shot: the positions of its frames, and of each the objects' logits as the model gives them, [s, s] each."""

    positions: range
    logits: dict[int, list[np.ndarray]] = field(default_factory=dict)


def choose_prompts(tracks: Sequence[Track], frames: Sequence[FrameRecord]) -> list[Prompt]:
    """Of each track the mask with the least contact with the frame's border, the first of those."""
    prompts = []
    for track in tracks:
        best = min(range(len(track.frames)), key=lambda place: track.instances[place].border_contact)
        frame = frames[track.frames[best]]
        mask = draw_instance(track.instances[best], (frame.height_px, frame.width_px))
        prompts.append(Prompt(track.frames[best], mask))
    return prompts


def follow_prompts(
    prompts: Sequence[Prompt],
    frames: Sequence[FrameRecord],
    read: Callable[[int], np.ndarray],
    params: SegmentObjects,
) -> tuple[list[Track], list[Rejection]]:
    """Tracks of all objects that the prompts show, each through its shot; `read` gives the RGB frame at a position.

    A prompt that lies on an object that is followed already shows that object again.
    """
    follower = build_follower(params.sam2)
    found: list[dict[int, Instance]] = [{} for _ in frames]
    rejections: list[Rejection] = []
    for shot in list_shots(frames):
        inside = sorted((p for p in prompts if p.position in shot.positions), key=lambda prompt: prompt.position)
        for position, group in groupby(inside, key=lambda prompt: prompt.position):
            known = separate(_enlarge(shot, frames, position, follower))
            shown = [prompt.mask for prompt in group]
            again = [any(_lie_on_each_other(mask, other) for other in known) for mask in shown]
            new = [mask for mask, is_known in zip(shown, again, strict=True) if not is_known]
            rejections += [
                _reject(frames[position], "followed_already", mask)
                for mask, is_known in zip(shown, again, strict=True)
                if is_known
            ]
            if new:
                _follow_objects(shot, position, new, read, follower)
        for position in shot.positions if shot.logits else ():
            logits = _enlarge(shot, frames, position, follower)
            found[position], rejected = measure_objects(read(position), logits, params)
            rejections += [_reject(frames[position], reason, mask) for reason, mask in rejected]
    return cut_tracks(found, frames), rejections


def list_shots(frames: Sequence[FrameRecord]) -> list[Shot]:
    """The shots of a clip; frames are in the order of time."""
    edges = [k for k in range(len(frames)) if k == 0 or frames[k].shot != frames[k - 1].shot]
    return [Shot(range(a, b)) for a, b in zip(edges, [*edges[1:], len(frames)], strict=True)]


def _follow_objects(
    shot: Shot,
    position: int,
    masks: Sequence[np.ndarray],
    read: Callable[[int], np.ndarray],
    follower: ObjectFollower,
) -> None:
    """Add the logits of objects, seen first at `position`, to all frames of the shot."""
    numbered = dict(enumerate(masks))
    onward = range(position, shot.positions.stop)
    back = range(position, shot.positions.start - 1, -1)
    found: dict[int, np.ndarray] = {}
    for way in (onward, back):
        if len(way) > 1 or not found:
            found |= zip(way, follower.follow((read(place) for place in way), numbered), strict=True)
    for place, logits in found.items():
        shot.logits.setdefault(place, []).extend(logits.astype(np.float16))


def _enlarge(shot: Shot, frames: Sequence[FrameRecord], position: int, follower: ObjectFollower) -> np.ndarray:
    """Logits float32 [object, h, w] at a frame's size; no object is known before the first was followed."""
    size_hw = frames[position].height_px, frames[position].width_px
    if not shot.logits:
        return np.zeros((0, *size_hw), np.float32)
    return follower.enlarge(np.stack(shot.logits[position]).astype(np.float32), size_hw)


def separate(logits: np.ndarray) -> np.ndarray:
    """Logits [object, h, w] => bool masks that share no pixel: it is the one's whose logit is highest, and over 0."""
    if not len(logits):
        return logits > 0
    return (logits > 0) & (logits.argmax(axis=0) == np.arange(len(logits))[:, None, None])


def measure_objects(
    image: np.ndarray, logits: np.ndarray, params: SegmentObjects
) -> tuple[dict[int, Instance], list[tuple[str, np.ndarray]]]:
    """Number => instance of the objects that a frame shows, by the first backend's filters, and why others are not.

    logits: [object, h, w]. What is nowhere over 0 is out of sight, and no loss.
    """
    claims, masks = logits > 0, separate(logits)
    probabilities = 0.5 + 0.5 * np.tanh(0.5 * logits)  # the sigmoid, without overflow
    instances: dict[int, Instance] = {}
    rejected: list[tuple[str, np.ndarray]] = []
    for number in np.flatnonzero(claims.any(axis=(1, 2))).tolist():
        others = [other for other in range(len(logits)) if other != number]
        if any(_lie_on_each_other(claims[number], claims[other]) for other in others):
            rejected.append(("in_doubt", claims[number]))
            continue
        taken = np.asarray(masks[others].any(axis=0))
        result = measure_object(image, probabilities[number], masks[number], params, taken=taken)
        if isinstance(result, Instance):
            instances[number] = result
        else:
            rejected.append((result, masks[number]))
    return instances, rejected


def cut_tracks(found: Sequence[Mapping[int, Instance]], frames: Sequence[FrameRecord]) -> list[Track]:
    """Tracks of each number's instances, by their first frame: a long absence, a cut or another look starts anew."""
    tracks: list[Track] = []
    latest: dict[int, Track] = {}
    for position, instances in enumerate(found):
        for number, instance in instances.items():
            track = latest.get(number)
            near = track is not None and is_near(frames[track.frames[-1]], frames[position])
            if track is None or not near or not looks_the_same(track, instance):
                latest[number] = track = Track()
                tracks.append(track)
            track.append(position, instance)
    return tracks


def _lie_on_each_other(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether most of the smaller of two masks lies in the other."""
    smaller = min(a.sum(), b.sum())
    return bool(smaller > 0 and (a & b).sum() >= MIN_INSIDE * smaller)


def _reject(frame: FrameRecord, reason: str, mask: np.ndarray) -> Rejection:
    detail = f"an object that is followed, {describe_box(box_from_mask(mask))}"
    return Rejection(stage=STAGE, item=f"{frame.clip_id}:{frame.sample_index}", reason=reason, detail=detail)
