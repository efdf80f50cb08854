"""Views of an object and how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data_prep.tars import read_tar
from imprint.core.pixels import decode_image
from imprint.core.prepare import crop_object
from imprint.core.records import FrameRecord, MaskRecord

THUMBNAIL_PX = 32
BLUR_PX = 1.0  # forgives a shift of a pixel of the thumbnail


@dataclass(frozen=True)
class TrackViews:
    """The usable views of one object: its mask rows by time and an RGBA thumbnail each [n, 32, 32, 4]."""

    rows: Sequence[MaskRecord]
    thumbnails: np.ndarray


def load_thumbnails(
    rows: Sequence[MaskRecord], frames: dict[int, FrameRecord], frames_tar: Path, masks_tar: Path
) -> np.ndarray:
    """Thumbnails of objects of one clip, [n, 32, 32, 4]; `frames` by sample index."""
    images, masks = read_tar(frames_tar), read_tar(masks_tar)
    thumbnails = []
    for row in rows:
        image = decode_image(images[frames[row.sample_index].member], f"{frames_tar}:{row.sample_index}")
        mask = decode_image(masks[row.member], f"{masks_tar}:{row.member}")[..., 0] == row.track
        thumbnails.append(crop_object(image, mask, THUMBNAIL_PX))
    return np.stack(thumbnails)


def compute_view_change(thumbnails: np.ndarray) -> np.ndarray:
    """How much the views of one object differ, [n, n] in [0, 1]; our measure.

    One minus the product of two likenesses of the object's centred crops at one size: of shape, the intersection over
    union of the silhouettes, and of pattern, the correlation of the colours where both are opaque, each view's channels
    normalised to mean 0 and variance 1 first. So a shift, a change of distance, and a change of the light's level or
    colour count for little; a turn counts, by the pattern that moves and the outline that changes.
    """
    count = len(thumbnails)
    opaque = (thumbnails[..., 3] > 127).reshape(count, -1).astype(np.float32)
    common = opaque @ opaque.T
    sizes = opaque.sum(axis=1)
    shape = common / np.maximum(sizes[:, None] + sizes[None, :] - common, 1.0)
    colours = np.stack([_normalize(thumbnail, mask) for thumbnail, mask in zip(thumbnails, opaque, strict=True)])
    energy = (colours**2).reshape(count, -1, 3).sum(axis=2) @ opaque.T  # of a view, over the common pixels
    flat = colours.reshape(count, -1)
    pattern = (flat @ flat.T) / np.sqrt(np.maximum(energy * energy.T, 1e-6))
    return 1.0 - np.clip(shape * np.clip(pattern, 0.0, 1.0), 0.0, 1.0)


def _normalize(thumbnail: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    """Blurred colours [h * w, 3], mean 0 and variance 1 over the opaque pixels, 0 elsewhere."""
    blurred = cv2.GaussianBlur(thumbnail[..., :3].astype(np.float32), (0, 0), BLUR_PX).reshape(-1, 3)
    inside = blurred[opaque > 0]
    spread = np.maximum(inside.std(axis=0), 1.0)  # a grey level: below it there is no pattern, only noise
    return (blurred - inside.mean(axis=0)) / spread * opaque[:, None]
