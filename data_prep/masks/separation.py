"""Masks of several objects that touch: split where that is clean, else left out; single objects are left alone.

A network is asked what of a mask belongs to the object at a place in it (`imprint.segmentation.separator`). What it
holds to be another object's, asked from its deepest place, is the mask's **foreign share**: of one object nothing. A
track is judged as a whole, by a few of its masks, and the verdict follows the median over neighbouring frames, since a
single answer may be wrong: masks of one object stay as they are, masks of several are split, or left out. Precision
before recall: a split must reproduce itself, and its parts are judged as their tracks' masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.masks.instances import Instance, describe_box, measure_given
from data_prep.masks.tracking import Track, draw_instance, link_tracks
from imprint.core.masks import largest_component
from imprint.core.params import SegmentObjects
from imprint.core.records import FrameRecord, Rejection
from imprint.segmentation.separator import Place, Question, find_deepest

STAGE = "segment_objects"
REASON = "several_objects"
COVERED = 0.96  # of a mask, by the objects at the places asked about
MAX_PLACES = 5
MAX_TRIES = 2
MIN_SAME = 0.95  # overlap of a part with the answer from its own middle; share of the mask that one part alone claims
WINDOW = 5  # frames, of the running median

Ask = Callable[[Sequence[Question]], list[np.ndarray]]  # as `ObjectSeparator.answer`


@dataclass(frozen=True)
class Footage:
    """One clip; `read` gives the RGB frame at a position."""

    frames: Sequence[FrameRecord]
    read: Callable[[int], np.ndarray]
    ask: Ask
    params: SegmentObjects
    shares: dict[int, float] = field(default_factory=dict)  # what has been measured, by the instance's id()


def link_apart(clip: Footage, found: Sequence[Sequence[Instance]]) -> tuple[list[Track], list[Rejection]]:
    """`link_tracks` of what is left when each mask of several objects is replaced by its parts, or left out."""
    min_iou, parts, rejections = clip.params.min_link_iou, set[int](), list[Rejection]()
    left = [list(instances) for instances in found]
    for track in link_tracks(clip.frames, found, min_iou):
        for position, instance in find_joined(clip, track):
            split = split_instance(clip, position, instance)
            left[position] = [other for other in left[position] if other is not instance] + split
            parts |= {id(part) for part in split}
            if not split:
                rejections.append(_reject(clip.frames[position], instance))
    tracks = link_tracks(clip.frames, left, min_iou)
    for track in tracks:
        if any(id(instance) in parts for instance in track.instances):
            joined = dict(find_joined(clip, track))
            rejections += [_reject(clip.frames[position], instance) for position, instance in joined.items()]
            track.instances = [one for at, one in zip(track.frames, track.instances, strict=True) if at not in joined]
            track.frames = [position for position in track.frames if position not in joined]
    return [track for track in tracks if track.frames], rejections


def find_joined(clip: Footage, track: Track) -> list[tuple[int, Instance]]:
    """Position and instance of each of a track's masks that is held to be of several objects."""
    limits = clip.params.touching
    masks = list(zip(track.frames, track.instances, strict=True))
    chosen = np.unique(np.linspace(0, len(masks) - 1, limits.judged_frames).round().astype(int))
    _measure_shares(clip, [masks[index] for index in chosen])
    if all(clip.shares[id(masks[index][1])] <= limits.max_foreign_share for index in chosen):
        return []
    _measure_shares(clip, masks)
    shares = smooth([clip.shares[id(instance)] for _, instance in masks])
    return [mask for mask, share in zip(masks, shares, strict=True) if share > limits.max_foreign_share]


def smooth(values: Sequence[float]) -> list[float]:
    """Running median over `WINDOW` values, fewer at the ends."""
    reach = WINDOW // 2
    return [float(np.median(values[max(k - reach, 0) : k + reach + 1])) for k in range(len(values))]


def _measure_shares(clip: Footage, masks: Sequence[tuple[int, Instance]]) -> None:
    """The foreign share of masks: what an answer from the deepest place leaves of them."""
    new = [(position, instance) for position, instance in masks if id(instance) not in clip.shares]
    questions = []
    for position, instance in new:
        image = clip.read(position)
        mask = draw_instance(instance, image.shape[:2])
        questions.append(Question(image, mask, find_deepest(mask)))
    for (_, instance), question, answer in zip(new, questions, clip.ask(questions), strict=True):
        clip.shares[id(instance)] = float(1 - answer[question.mask].mean())


def split_instance(clip: Footage, position: int, instance: Instance) -> list[Instance]:
    """The objects of a mask as instances of their own; none if it cannot be split cleanly."""
    image = clip.read(position)
    masks = split_mask(image, draw_instance(instance, image.shape[:2]), clip.ask)
    parts = [measure_given(image, mask, clip.params) for mask in masks]
    good = [part for part in parts if isinstance(part, Instance)]
    sure = {"confidence": instance.confidence, "boundary_confidence": instance.boundary_confidence}
    return [replace(part, **sure) for part in good]


def split_mask(image: np.ndarray, mask: np.ndarray, ask: Ask) -> list[np.ndarray]:
    """The objects in a mask, bool [h, w] each, by answers from ever new places until all of it is covered.

    Each part is then asked about from its own middle, and must come out again, at the second try at the latest; else
    none.
    """
    places, answers, rest = list[Place](), list[np.ndarray](), mask
    while len(answers) < MAX_PLACES and rest.sum() > (1 - COVERED) * mask.sum():
        places.append(find_deepest(rest))
        answers += ask([Question(image, mask, places[-1])])
        rest = mask & (np.max(answers, axis=0) < 0.5)
    parts = _share_out(mask, [np.mean([answers[k] for k in group], axis=0) for group in group_places(places, answers)])
    for _ in range(MAX_TRIES):
        if len(parts) < 2:
            break
        again = ask([Question(image, mask, find_deepest(part)) for part in parts])
        repeated = _share_out(mask, again)
        if len(repeated) == len(parts) and _measure_accord(mask, parts, repeated, again) >= MIN_SAME:
            return repeated
        parts = repeated
    return []


def _measure_accord(
    mask: np.ndarray, parts: Sequence[np.ndarray], repeated: Sequence[np.ndarray], answers: Sequence[np.ndarray]
) -> float:
    """The least overlap of a part with what came out again, or the share of the mask that one part alone claims."""
    overlaps = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(parts, repeated, strict=True)]
    claims = np.sum([answer >= 0.5 for answer in answers], axis=0)
    return float(min([*overlaps, (claims[mask] == 1).mean()]))


def group_places(places: Sequence[Place], answers: Sequence[np.ndarray]) -> list[list[int]]:
    """Numbers of the places of each object: two are on one object if either's answer holds the other."""
    groups: list[list[int]] = []
    for k, place in enumerate(places):
        fits = [g for g in groups if all(answers[k][places[j]] >= 0.5 and answers[j][place] >= 0.5 for j in g)]
        if fits:
            fits[0].append(k)
        else:
            groups.append([k])
    return groups


def _share_out(mask: np.ndarray, answers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each pixel of a mask to the object that claims it most; of each object the largest piece."""
    highest = np.argmax(answers, axis=0)
    owned = [mask & (highest == number) for number in range(len(answers))]
    return [largest_component(part) for part in owned if part.any()]


def _reject(frame: FrameRecord, instance: Instance) -> Rejection:
    item, detail = f"{frame.clip_id}:{frame.sample_index}", f"no clean split, {describe_box(instance.box)}"
    return Rejection(stage=STAGE, item=item, reason=REASON, detail=detail)
