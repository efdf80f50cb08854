"""Links objects over time into tracks: by overlap with the predicted mask, area and colours.

Precision before recall: a pair that joins two objects is the worst defect of the data, a track cut in two costs little.
So a link needs a partner on both sides that nobody else touches. Where two tracks run into one component, both end, and
the component and what follows it are in doubt; where a track falls apart, all of it is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.masks.instances import Instance, compare_histograms
from imprint.core.geometry import Box
from imprint.core.records import FrameRecord

MAX_GAP_FRAMES = 2  # sampled frames from one link to the next: one frame may be missing
MIN_CONTACT = 0.1  # share of the smaller of two masks from which they touch
MAX_AREA_RATIO = 1.4  # between linked masks, per sampled frame
MIN_SIMILARITY = 0.8  # of colours, to the last mask
MIN_TRACK_SIMILARITY = 0.6  # of colours, to the track's first mask


@dataclass
class Track:
    """Positions in the clip's frames and the object there; `doubtful` tracks are not used."""

    frames: list[int] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    doubtful: bool = False
    given_id: int = 0  # of an object whose masks were given

    def append(self, frame: int, instance: Instance) -> None:
        self.frames.append(frame)
        self.instances.append(instance)


def link_tracks(frames: Sequence[FrameRecord], found: Sequence[Sequence[Instance]], min_iou: float) -> list[Track]:
    """All tracks of one clip, by their first frame; `found` are the objects of each of `frames`."""
    finished: list[Track] = []
    active: list[Track] = []
    for position, instances in enumerate(found):
        live = [track for track in active if _is_near(frames[track.frames[-1]], frames[position])]
        finished += [track for track in active if not any(track is other for other in live)]
        ended, active = _step(live, frames, position, instances, min_iou)
        finished += ended
    return sorted(finished + active, key=lambda track: (track.frames[0], track.instances[0].box))


def compute_overlap(a: Instance, b: Instance, shift_yx: tuple[int, int] = (0, 0)) -> int:
    """Common pixels of two masks of a clip, `a` moved by `shift_yx`."""
    dy, dx = shift_yx
    moved = Box(a.box.y0 + dy, a.box.x0 + dx, a.box.y1 + dy, a.box.x1 + dx)
    y0, x0 = max(moved.y0, b.box.y0), max(moved.x0, b.box.x0)
    y1, x1 = min(moved.y1, b.box.y1), min(moved.x1, b.box.x1)
    if y1 <= y0 or x1 <= x0:
        return 0
    part_a = a.mask[y0 - moved.y0 : y1 - moved.y0, x0 - moved.x0 : x1 - moved.x0]
    part_b = b.mask[y0 - b.box.y0 : y1 - b.box.y0, x0 - b.box.x0 : x1 - b.box.x0]
    return int((part_a & part_b).sum())


def _is_near(last: FrameRecord, now: FrameRecord) -> bool:
    return last.shot == now.shot and now.sample_index - last.sample_index <= MAX_GAP_FRAMES


def _step(
    live: list[Track], frames: Sequence[FrameRecord], position: int, instances: Sequence[Instance], min_iou: float
) -> tuple[list[Track], list[Track]]:
    """One frame: the tracks that end here, and the active ones after it."""
    touches, ious = _compute_contacts(live, frames, position, instances)
    ended, active, linked = [], [], set()
    for row, track in enumerate(live):
        partners = np.flatnonzero(touches[row])
        if len(partners) == 0:
            active.append(track)  # unseen in this frame; it may come back in the next
            continue
        column = int(partners[0])
        alone = len(partners) == 1 and touches[:, column].sum() == 1
        if alone and ious[row, column] >= min_iou and _looks_the_same(track, instances[column]):
            track.append(position, instances[column])
            active.append(track)
            linked.add(column)
        else:
            track.doubtful |= len(partners) > 1  # it falls apart: it may have been two objects all the time
            ended.append(track)
    for column, instance in enumerate(instances):
        if column not in linked:
            before = [live[row] for row in np.flatnonzero(touches[:, column])]
            split = any(touches[row].sum() > 1 for row in np.flatnonzero(touches[:, column]))
            active.append(Track([position], [instance], doubtful=_is_doubtful(instance, before, split)))
    return ended, active


def _compute_contacts(
    live: list[Track], frames: Sequence[FrameRecord], position: int, instances: Sequence[Instance]
) -> tuple[np.ndarray, np.ndarray]:
    """[track, instance]: whether the track's predicted mask touches the instance, and their intersection over union."""
    overlaps = np.zeros((len(live), len(instances)))
    for row, track in enumerate(live):
        shift_yx = _predict_shift(track, frames, position)
        overlaps[row] = [compute_overlap(track.instances[-1], instance, shift_yx) for instance in instances]
    track_px = np.array([track.instances[-1].area_px for track in live]).reshape(-1, 1)
    instance_px = np.array([instance.area_px for instance in instances]).reshape(1, -1)
    touches = overlaps >= np.maximum(MIN_CONTACT * np.minimum(track_px, instance_px), 1)
    return touches, overlaps / (track_px + instance_px - overlaps)


def _predict_shift(track: Track, frames: Sequence[FrameRecord], position: int) -> tuple[int, int]:
    """By how much the object's box moves until now, at its last speed."""
    if len(track.frames) < 2:
        return 0, 0
    before, last, now = (frames[index].sample_index for index in (track.frames[-2], track.frames[-1], position))
    steps = (now - last) / (last - before)
    (y0, x0), (y1, x1) = (_centre(instance.box) for instance in track.instances[-2:])
    return round((y1 - y0) * steps), round((x1 - x0) * steps)


def _centre(box: Box) -> tuple[float, float]:
    return (box.y0 + box.y1) / 2, (box.x0 + box.x1) / 2


def _looks_the_same(track: Track, instance: Instance) -> bool:
    last = track.instances[-1]
    ratio = instance.area_px / last.area_px
    return (
        1 / MAX_AREA_RATIO <= ratio <= MAX_AREA_RATIO
        and compare_histograms(last.histogram, instance.histogram) >= MIN_SIMILARITY
        and compare_histograms(track.instances[0].histogram, instance.histogram) >= MIN_TRACK_SIMILARITY
    )


def _is_doubtful(instance: Instance, before: list[Track], split: bool) -> bool:
    """Whether a track may begin as two objects in one: where two were, or one in doubt, or where one grew at once."""
    grew = any(instance.area_px > MAX_AREA_RATIO * track.instances[-1].area_px for track in before)
    return len(before) > 1 or grew or (not split and any(track.doubtful for track in before))
