"""Links objects over time into tracks: by overlap with the predicted mask, area and colours.

Precision before recall: a pair that joins two objects is the worst defect of the data, a track cut in two costs little.
So a link needs a partner without a rival on either side, which takes no ground from another track. Where two tracks
run into one component, both end, and the component and what follows it are in doubt; where a track falls apart, all of
it is in doubt. Two objects that are one component all through a shot are beyond this: nothing here tells them from one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.masks.instances import Instance, compare_histograms
from imprint.core.geometry import Box
from imprint.core.records import FrameRecord

MAX_GAP_FRAMES = 2  # sampled frames from one link to the next: one frame may be missing
MIN_CONTACT = 0.1  # share of the smaller of two masks from which they touch
MIN_INSIDE = 0.5  # share of a mask from which it lies in another one
MAX_RIVAL = 0.5  # overlap with a second partner / with the first
MAX_FOREIGN = 0.05  # share of an object that may lie where another track is expected
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
        live = [track for track in active if is_near(frames[track.frames[-1]], frames[position])]
        finished += [track for track in active if not any(track is other for other in live)]
        ended, active = _step(live, frames, position, instances, min_iou)
        finished += ended
    return sorted(finished + active, key=lambda track: (track.frames[0], track.instances[0].box))


def is_near(last: FrameRecord, now: FrameRecord) -> bool:
    """Whether a track may go from one frame to the other."""
    return last.shot == now.shot and now.sample_index - last.sample_index <= MAX_GAP_FRAMES


def _step(
    live: list[Track], frames: Sequence[FrameRecord], position: int, instances: Sequence[Instance], min_iou: float
) -> tuple[list[Track], list[Track]]:
    """One frame: the tracks that end here, and the active ones after it."""
    overlaps = _compute_overlaps(live, frames, position, instances)
    links = _find_links(live, instances, overlaps, min_iou)
    touches = overlaps.find_touches(links)
    pieces = touches.sum(axis=1)
    pieces[list(links)] += 1
    ended, active = [], []
    for row, track in enumerate(live):
        track.doubtful |= bool(pieces[row] > 1)  # it falls apart: it may have been two objects all the time
        if row in links:
            track.append(position, instances[links[row]])
        # unseen in this frame, it may come back in the next; met but not linked, it ends
        (active if row in links or pieces[row] == 0 else ended).append(track)
    for column, instance in enumerate(instances):
        if column not in links.values():
            rows = np.flatnonzero(touches[:, column])
            doubtful = _is_doubtful(instance, [live[row] for row in rows], split=bool((pieces[rows] > 1).any()))
            active.append(Track([position], [instance], doubtful=doubtful))
    return ended, active


@dataclass(frozen=True)
class Overlaps:
    """Tracks' predicted masks against a frame's instances, all [track, instance].

    iou: intersection over union; in_track: the share of the instance that lies in the track; in_instance: the reverse;
    foreign: the share of the instance that lies outside the track but in another one.
    """

    iou: np.ndarray
    in_track: np.ndarray
    in_instance: np.ndarray
    foreign: np.ndarray

    def find_touches(self, links: Mapping[int, int]) -> np.ndarray:
        """Bool [track, instance]: what a link does not explain.

        Where both are linked, nothing; where one is, that most of the other lies in it; where none is, a contact.
        """
        contact = np.maximum(self.in_track, self.in_instance) >= MIN_CONTACT
        mostly_in_track, mostly_in_instance = self.in_track >= MIN_INSIDE, self.in_instance >= MIN_INSIDE
        linked_track, linked_instance = np.zeros(contact.shape, bool), np.zeros(contact.shape, bool)
        linked_track[list(links)] = True
        linked_instance[:, list(links.values())] = True
        touches = np.where(linked_track, mostly_in_track, contact)
        touches = np.where(linked_instance, mostly_in_instance, touches)
        return touches & ~(linked_track & linked_instance)


def _compute_overlaps(
    live: list[Track], frames: Sequence[FrameRecord], position: int, instances: Sequence[Instance]
) -> Overlaps:
    hw = frames[position].height_px, frames[position].width_px
    shifts = [_predict_shift(track, frames, position) for track in live]
    moved = _stack([draw_instance(t.instances[-1], hw, shift) for t, shift in zip(live, shifts, strict=True)], hw)
    found = _stack([draw_instance(instance, hw) for instance in instances], hw)
    common, track_px, instance_px = moved @ found.T, moved.sum(1)[:, None], found.sum(1)[None]
    others = np.array([np.delete(moved, row, axis=0).max(axis=0, initial=0) for row in range(len(live))])
    foreign = (others.reshape(moved.shape) * (1 - moved)) @ found.T
    return Overlaps(
        iou=common / np.maximum(track_px + instance_px - common, 1),
        in_track=common / np.maximum(instance_px, 1),
        in_instance=common / np.maximum(track_px, 1),
        foreign=foreign / np.maximum(instance_px, 1),
    )


def _stack(masks: Sequence[np.ndarray], image_hw: tuple[int, int]) -> np.ndarray:
    """[n, h * w] float32, so that products of two stacks count common pixels."""
    return np.array(masks, np.float32).reshape(len(masks), image_hw[0] * image_hw[1])


def draw_instance(instance: Instance, image_hw: tuple[int, int], shift_yx: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The instance's mask in its frame, bool [h, w], moved by `shift_yx`; what leaves the frame is lost."""
    (dy, dx), box = shift_yx, instance.box
    y0, x0 = max(box.y0 + dy, 0), max(box.x0 + dx, 0)
    y1, x1 = min(box.y1 + dy, image_hw[0]), min(box.x1 + dx, image_hw[1])
    canvas = np.zeros(image_hw, bool)
    if y1 > y0 and x1 > x0:
        canvas[y0:y1, x0:x1] = instance.mask[y0 - dy - box.y0 : y1 - dy - box.y0, x0 - dx - box.x0 : x1 - dx - box.x0]
    return canvas


def _find_links(live: list[Track], instances: Sequence[Instance], overlaps: Overlaps, min_iou: float) -> dict[int, int]:
    """Track => instance: each the other's best, no second one nearly as good, and the same look."""
    links: dict[int, int] = {}
    for row, track in enumerate(live):
        if not len(instances):
            break
        column = int(overlaps.iou[row].argmax())
        best = overlaps.iou[row, column]
        rivals = np.concatenate([np.delete(overlaps.iou[row], column), np.delete(overlaps.iou[:, column], row)])
        sure = best >= min_iou and rivals.max(initial=0) <= MAX_RIVAL * best
        if sure and overlaps.foreign[row, column] <= MAX_FOREIGN and looks_the_same(track, instances[column]):
            links[row] = column
    return links


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


def looks_the_same(track: Track, instance: Instance) -> bool:
    """Whether an instance has about the size and the colours of the track's last one, and the colours of its first."""
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
