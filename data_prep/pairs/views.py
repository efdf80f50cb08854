"""Views of an object and how much they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data_prep.pairs.backgrounds import (
    Backgrounds,
    Features,
    compute_changed_share,
    find_features,
    shrink_background,
)
from data_prep.tars import read_tar
from imprint.core.pixels import decode_image
from imprint.core.prepare import crop_object
from imprint.core.records import FrameRecord, MaskRecord, get_box

FRAMES, MASKS = Path("data/frames"), Path("data/masks")
THUMBNAIL_PX = 32
BLUR_PX = 1.0  # forgives a shift of a pixel of the thumbnail
SCENES_PER_SHOT, SCENES_PER_CLIP = 3, 12  # frames whose background is looked at closely, at most


@dataclass(frozen=True)
class TrackViews:
    """One object's usable views: its mask rows by time, an RGBA thumbnail each [n, 32, 32, 4], and box shares [n]."""

    rows: Sequence[MaskRecord]
    thumbnails: np.ndarray
    box_shares: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.rows[0].clip_id}:{self.rows[0].track}"


@dataclass(frozen=True)
class ClipViews:
    """The usable views of one clip, and of the frames that they lie in, by time: hash, background, place among them.

    `features` are those of the frames whose place in `backgrounds` is a key.
    """

    clip_id: str
    tracks: Sequence[TrackViews]
    hashes: Sequence[int]
    backgrounds: Backgrounds
    places: Mapping[int, int]  # sample index => row of `hashes` and `backgrounds`
    features: Mapping[int, Features]
    unseen: Sequence[MaskRecord] = ()


def load_clip(
    clip_id: str, tracks: Sequence[Sequence[MaskRecord]], frames: Mapping[int, FrameRecord], root: Path
) -> ClipViews:
    """Read one clip's tars once; `frames` by sample index.

    A view of which no pixel is drawn is none of its track's, but `unseen`.
    """
    tars = root / FRAMES / f"{clip_id}.tar", root / MASKS / f"{clip_id}.tar"
    images, masks = read_tar(tars[0]), read_tar(tars[1])
    indices = sorted({row.sample_index for rows in tracks for row in rows})
    scenes = choose_scenes([frames[index].shot for index in indices])
    thumbnails: dict[tuple[int, int], np.ndarray] = {}
    backgrounds: list[tuple[np.ndarray, np.ndarray]] = []
    features: dict[int, Features] = {}
    for place, index in enumerate(indices):
        image = decode_image(images[frames[index].member], f"{tars[0]}:{index}")
        of_frame = [row for rows in tracks for row in rows if row.sample_index == index]
        ids = decode_image(masks[of_frame[0].member], f"{tars[1]}:{index}")[..., 0]
        for row in [row for row in of_frame if (ids == row.track).any()]:
            thumbnails[row.track, index] = crop_object(image, ids == row.track, THUMBNAIL_PX)
        backgrounds.append(shrink_background(image, ids > 0))
        if place in scenes:
            features[place] = find_features(image, ids > 0)
    seen = [[row for row in rows if (row.track, row.sample_index) in thumbnails] for rows in tracks]
    return ClipViews(
        clip_id=clip_id,
        tracks=[_build_track(rows, thumbnails, frames) for rows in seen if rows],
        hashes=[int(frames[index].phash, 16) for index in indices],
        backgrounds=Backgrounds(*(np.stack(parts) for parts in zip(*backgrounds, strict=True))),
        places={index: place for place, index in enumerate(indices)},
        features=features,
        unseen=[row for rows in tracks for row in rows if (row.track, row.sample_index) not in thumbnails],
    )


def _build_track(
    rows: Sequence[MaskRecord], thumbnails: Mapping[tuple[int, int], np.ndarray], frames: Mapping[int, FrameRecord]
) -> TrackViews:
    return TrackViews(
        rows,
        np.stack([thumbnails[row.track, row.sample_index] for row in rows]),
        np.array([compute_box_share(row, frames[row.sample_index]) for row in rows]),
    )


def compute_box_share(row: MaskRecord, frame: FrameRecord) -> float:
    """The larger of the box's height and width as shares of the frame's, 0-1."""
    box = get_box(row)
    return max(box.height_px / frame.height_px, box.width_px / frame.width_px)


def choose_scenes(shots: Sequence[int]) -> set[int]:
    """Places of the frames, given by their shot, of which features are taken: some of every shot."""
    of_shot: dict[int, list[int]] = {}
    for place, shot in enumerate(shots):
        of_shot.setdefault(shot, []).append(place)
    chosen = [places[k] for places in of_shot.values() for k in spread_evenly(len(places), SCENES_PER_SHOT)]
    return {chosen[k] for k in spread_evenly(len(chosen), SCENES_PER_CLIP)}


def spread_evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 to `count` - 1, evenly spread, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, limit)).round().astype(int).tolist()))


@dataclass(frozen=True)
class Patterns:
    """What the change between views is computed from, float32: opaque [n, 1024], colours [n, 3072], energies [n, 1024].

    An energy is the sum of a pixel's squared colours.
    """

    opaque: np.ndarray
    colours: np.ndarray
    energies: np.ndarray

    def select(self, rows: np.ndarray) -> Patterns:
        return Patterns(self.opaque[rows], self.colours[rows], self.energies[rows])


def build_patterns(thumbnails: np.ndarray) -> Patterns:
    """From RGBA thumbnails [n, 32, 32, 4]; each view's colours get mean 0 and variance 1."""
    opaque = (thumbnails[..., 3] > 127).reshape(len(thumbnails), -1).astype(np.float32)
    colours = np.stack([_normalize(thumbnail, mask) for thumbnail, mask in zip(thumbnails, opaque, strict=True)])
    return Patterns(opaque, colours.reshape(len(colours), -1), (colours**2).sum(axis=2))


def compute_view_change(first: Patterns, second: Patterns) -> np.ndarray:
    """How much views of objects differ, [n, m] in [0, 1]; our measure.

    One minus the product of two likenesses of the object's centred crops at one size: of shape, the intersection over
    union of the silhouettes, and of pattern, the correlation of the colours where both are opaque, each view's channels
    normalised to mean 0 and variance 1 first. So a shift, a change of distance, and a change of the light's level or
    colour count for little; a turn counts, by the pattern that moves and the outline that changes.
    """
    common = first.opaque @ second.opaque.T
    sizes = first.opaque.sum(axis=1)[:, None] + second.opaque.sum(axis=1)[None, :]
    shape = common / np.maximum(sizes - common, 1.0)
    energy = (first.energies @ second.opaque.T) * (first.opaque @ second.energies.T)  # over the common pixels
    pattern = (first.colours @ second.colours.T) / np.sqrt(np.maximum(energy, 1e-6))
    return 1.0 - np.clip(shape * np.clip(pattern, 0.0, 1.0), 0.0, 1.0)


def compute_changes(track: TrackViews) -> np.ndarray:
    """View change between all views of one object, [n, n]."""
    patterns = build_patterns(track.thumbnails)
    return compute_view_change(patterns, patterns)


def compute_background_change(track: TrackViews, clip: ClipViews, pairs: np.ndarray) -> np.ndarray:
    """Share of the background that changed between the frames of a track's views, for `pairs` [n, 2] of them."""
    places = np.array([clip.places[row.sample_index] for row in track.rows])
    return compute_changed_share(clip.backgrounds, places[pairs])


def _normalize(thumbnail: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    """Blurred colours [h * w, 3], mean 0 and variance 1 over the opaque pixels, 0 elsewhere."""
    blurred = cv2.GaussianBlur(thumbnail[..., :3].astype(np.float32), (0, 0), BLUR_PX).reshape(-1, 3)
    inside = blurred[opaque > 0]
    spread = np.maximum(inside.std(axis=0), 1.0)  # a grey level: below it there is no pattern, only noise
    return (blurred - inside.mean(axis=0)) / spread * opaque[:, None]
