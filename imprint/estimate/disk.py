"""What the data takes on disk, by the bytes per pixel that were measured on the demo clips."""

from __future__ import annotations

from dataclasses import dataclass

from imprint.core.params import Params

# data/ of the shipped demo clips (288 s of video; 1,728 frames and 1,719 views, all of 128 x 128 px), tars included
_FRAME_BYTES_PER_PX = 0.474  # JPEG of quality 95
_MASK_BYTES_PER_PX = 0.089
_OBJECT_BYTES_PER_PX = 1.24  # PNG with opacity
_SCENE_BYTES_PER_PX = 0.53  # JPEG of quality 95, and the object's mask
_VIEWS_PER_FRAME = 0.995
_ASPECT = 9 / 16  # of frames whose size is not known


@dataclass(frozen=True, kw_only=True)
class DataBytes:
    """Of one hour of video whose every sampled frame is kept."""

    frames: float
    masks: float
    shards: float


def scale_data(params: Params) -> DataBytes:
    """The measured bytes per pixel at the params' sizes. Photographs differ: this is an order of size."""
    frames_per_hour = 3600 * params.extract_frames.sample_fps
    frame_px = params.extract_frames.max_side_px**2 * _ASPECT
    packed = params.pack_shards
    view_bytes = _OBJECT_BYTES_PER_PX * packed.reference_px**2 + _SCENE_BYTES_PER_PX * packed.size_px**2
    return DataBytes(
        frames=frames_per_hour * _FRAME_BYTES_PER_PX * frame_px,
        masks=frames_per_hour * _MASK_BYTES_PER_PX * frame_px,
        shards=frames_per_hour * _VIEWS_PER_FRAME * view_bytes,
    )
