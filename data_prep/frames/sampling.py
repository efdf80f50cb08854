"""From a clip's frames to the kept ones: shots, sharpness, near-duplicates, size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from imprint.core.params import ExtractFrames
from imprint.core.pixels import encode_image, resize_image
from imprint.core.records import ClipRecord, FrameRecord, Rejection

STAGE = "extract_frames"


def compute_sample_indices(num_frames: int, fps: float, sample_fps: float) -> list[int]:
    """Frame numbers of `sample_fps` frames per second; every frame where the clip has no more than that."""
    step = max(fps / sample_fps, 1.0)
    indices = (round(sample * step) for sample in range(int(num_frames / step) + 1))
    return [index for index in indices if index < num_frames]


def compute_sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of an RGB uint8 image, in grey levels squared."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def fit_side(image: np.ndarray, max_side_px: int) -> np.ndarray:
    """The image, scaled down if its longer side is over `max_side_px`."""
    scale = max_side_px / max(image.shape[:2])
    if scale >= 1.0:
        return image
    return resize_image(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def build_cut_detector(threshold: float) -> Callable[[int, np.ndarray], bool]:
    """`(sample_index, RGB frame) -> is it the first of a new shot`, by PySceneDetect; frames must come in order.

    It sees the sampled frames, which differ more than consecutive ones: it errs towards too many cuts, and a cut only
    shortens tracks, while a missed one could join two objects.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector = ContentDetector(threshold=threshold, min_scene_len=1)

    def is_cut(sample_index: int, image: np.ndarray) -> bool:
        bgr = np.ascontiguousarray(image[..., ::-1])
        return bool(detector.process_frame(FrameTimecode(sample_index, 1.0), bgr))

    return is_cut


@dataclass
class FrameFilter:
    """Decides frame by frame what is kept; `rows`, `members` and `rejections` hold the result."""

    clip: ClipRecord
    params: ExtractFrames
    rows: list[FrameRecord] = field(default_factory=list)
    members: list[tuple[str, bytes]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    _shot: int = 0
    _last_hash: int | None = None
    _is_cut: Callable[[int, np.ndarray], bool] | None = None

    def run(self, images: Iterable[np.ndarray], indices: Sequence[int]) -> None:
        """Filter the images of the frame numbers `indices`."""
        for sample_index, (source_index, image) in enumerate(zip(indices, images, strict=False)):
            self.add(fit_side(image, self.params.max_side_px), sample_index, source_index)

    def add(self, small: np.ndarray, sample_index: int, source_index: int) -> bool:
        """Filter one picture of the right size; is it kept? Pictures that are no video are each a shot of their own."""
        if self.clip.order == "time":
            self._is_cut = self._is_cut or build_cut_detector(self.params.cut_threshold)
            self._shot += self._is_cut(sample_index, small)
        else:
            self._shot, self._last_hash = sample_index, None
        return self._judge(small, sample_index, source_index)

    def _judge(self, small: np.ndarray, sample_index: int, source_index: int) -> bool:
        sharpness = compute_sharpness(small)
        if sharpness < self.params.min_sharpness:
            self.reject(sample_index, "blurred", f"sharpness {sharpness:.1f}")
            return False
        phash = compute_phash(small)
        last = self._last_hash
        if last is not None and count_bits(phash ^ last) < self.params.min_hash_distance:
            self.reject(sample_index, "near_duplicate", "of the last kept frame")
            return False
        self._last_hash = phash
        self._keep(small, sample_index, source_index, sharpness=sharpness, phash=phash)
        return True

    def reject(self, sample_index: int, reason: str, detail: str) -> None:
        """Leave a frame out, with a row of the ledger."""
        item = f"{self.clip.clip_id}:{sample_index}"
        self.rejections.append(Rejection(stage=STAGE, item=item, reason=reason, detail=detail))

    def _keep(self, image: np.ndarray, sample_index: int, source_index: int, *, sharpness: float, phash: int) -> None:
        member = f"{sample_index:06d}.jpg"
        self.members.append((member, encode_image(image, ".jpg", self.params.jpeg_quality)))
        self.rows.append(
            FrameRecord(
                clip_id=self.clip.clip_id,
                sample_index=sample_index,
                source_index=source_index,
                time_s=source_index / self.clip.fps if self.clip.fps else 0.0,
                shot=self._shot,
                sharpness=sharpness,
                phash=f"{phash:016x}",
                height_px=image.shape[0],
                width_px=image.shape[1],
                member=member,
            )
        )


def compute_phash(image: np.ndarray) -> int:
    """64-bit perceptual hash of an RGB uint8 image."""
    import imagehash
    from PIL import Image

    return int(str(imagehash.phash(Image.fromarray(image))), 16)


def count_bits(value: int) -> int:
    return value.bit_count()
