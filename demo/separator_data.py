"""Questions with exact answers for `demo/train_separator.py`: which pixels of a mask show the same object as a place.

The masks are those of rendered scenes and of pasted groups, worn at their edges as a network's are. Half of them hold
several objects; of the others many lie beside an object that touches them. Everything follows from seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

from demo.segmenter_data import SIZE_PX, degrade, draw_background, draw_object, paste, place, sample_matrix
from demo.segmenter_data import Pool as SegmenterPool
from imprint.core.errors import InputError
from imprint.core.pixels import load_image
from imprint.segmentation.separator import Place, find_deepest, find_window

SCENE_SHARE = 0.65
SEVERAL_SHARE = 0.5
MIN_OBJECT_PX = 40
MIN_PART = 0.03  # of a mask, from which another object in it counts
DEEPEST_SHARE = 0.4  # of the questions, those about a mask's deepest place, by which masks are judged
TWIN_SHARE = 0.35  # of the objects that are pasted beside another, those that look the same
MAX_TRIES = 200


@dataclass(frozen=True)
class LabelledScenes:
    """images: RGB uint8 [n, 128, 128, 3]; labels: uint8 [n, 128, 128], 0 or the object's number; seeds: of each."""

    images: np.ndarray
    labels: np.ndarray
    seeds: list[int]

    @cached_property
    def touching(self) -> list[int]:
        """Numbers of the pictures in which objects touch."""
        pictures = enumerate(self.labels)
        return [k for k, labels in pictures if any(len(list_parts(labels, blob)) > 1 for blob in list_blobs(labels))]


@dataclass(frozen=True)
class Sample:
    """image: uint8 [s, s, 3]; mask: uint8 [s, s]; place: float32 [2]; answer: uint8 [s, s]; as `build_planes` wants."""

    image: np.ndarray
    mask: np.ndarray
    place: np.ndarray
    answer: np.ndarray


def load_labelled(folder: Path) -> LabelledScenes:
    """What `demo.segdata.write_scene` wrote, with the objects' numbers kept; 128 px, by seed and number."""
    places = sorted((path.parent for path in folder.glob("*/image.png")), key=lambda path: _read_name(path.name))
    if not places:
        raise InputError(
            f"there are no scenes in {folder}; render them with python -m demo.render scenes --out {folder}"
        )
    images = np.stack([load_image(path / "image.png") for path in places])
    labels = np.stack([load_image(path / "mask.png")[..., 0] for path in places])
    if images.shape[1:3] != (SIZE_PX, SIZE_PX):
        raise InputError(f"the scenes in {folder} are not {SIZE_PX} px; render them with --px {SIZE_PX}")
    return LabelledScenes(images, labels, [_read_name(path.name)[0] for path in places])


def draw_question(scenes: LabelledScenes, pool: SegmenterPool, rng: np.random.Generator) -> Sample:
    """One question with its answer; half of the masks hold several objects."""
    several = rng.random() < SEVERAL_SHARE
    for _ in range(MAX_TRIES):
        image, labels = _draw_labelled(scenes, pool, rng, several=several)
        mask = _choose_mask(labels, rng, several=several)
        if mask is not None:
            return build_sample(degrade(image, rng), labels, wear_mask(mask, rng), rng)
    raise AssertionError("no picture holds such a mask")


def build_sample(
    image: np.ndarray, labels: np.ndarray, mask: np.ndarray, rng: np.random.Generator, *, at: Place | None = None
) -> Sample:
    """A question about a mask, bool [h, w], at a place that may be drawn, and its answer by the objects' labels."""
    rows, columns = np.asarray(distance_transform_edt(labels == 0, return_distances=False, return_indices=True))
    owners = np.where(mask, labels[rows, columns], 0)
    if at is None:
        at = find_deepest(mask) if rng.random() < DEEPEST_SHARE else _draw_place(owners, mask, rng)
    own = owners == owners[at]
    window = find_window(mask)
    return Sample(
        window.cut(image, cv2.BORDER_REPLICATE),
        window.cut(mask.astype(np.uint8) * 255, cv2.BORDER_CONSTANT),
        np.array(window.locate(at), np.float32),
        window.cut(own.astype(np.uint8) * 255, cv2.BORDER_CONSTANT),
    )


def _draw_place(owners: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Place:
    """Somewhere within one of the objects, by their numbers, that a mask holds; not at that object's edge."""
    numbers, counts = np.unique(owners[mask], return_counts=True)
    own = owners == int(rng.choice(numbers[counts >= min(MIN_PART * counts.sum(), counts.max())]))
    depth = cv2.distanceTransform(np.pad(own.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = rng.choice(np.argwhere(depth >= rng.uniform(0.2, 1.0) * depth.max())).tolist()
    return y, x


def wear_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask with its edge moved to and fro by a pixel or two, now and then by more."""
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    depth -= cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    field = cv2.GaussianBlur(rng.normal(0, 1, mask.shape).astype(np.float32), (0, 0), rng.uniform(2, 7))
    reach_px = rng.uniform(0, 1.5) if rng.random() < 0.75 else rng.uniform(1.5, 4)
    worn = depth + field / max(float(field.std()), 1e-6) * reach_px + rng.uniform(-1.2, 1.2) > 0
    return worn if (worn & mask).sum() > 0.5 * mask.sum() else mask


def list_blobs(labels: np.ndarray) -> list[np.ndarray]:
    """Masks of what hangs together in a picture of labels, bool [h, w] each, the specks left out."""
    joined = cv2.dilate((labels > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
    count, parts = cv2.connectedComponents(joined, connectivity=8)
    blobs = [(parts == number) & (labels > 0) for number in range(1, count)]
    return [blob for blob in blobs if blob.sum() >= MIN_OBJECT_PX]


def list_parts(labels: np.ndarray, mask: np.ndarray) -> list[int]:
    """Numbers of the objects that fill at least `MIN_PART` of a mask."""
    numbers, counts = np.unique(labels[mask & (labels > 0)], return_counts=True)
    return numbers[counts >= MIN_PART * mask.sum()].tolist()


def _draw_labelled(
    scenes: LabelledScenes, pool: SegmenterPool, rng: np.random.Generator, *, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() < SCENE_SHARE:
        index = int(rng.choice(scenes.touching) if several else rng.integers(len(scenes.images)))
        image, labels = scenes.images[index], scenes.labels[index]
        if rng.random() < 0.6:
            matrix = sample_matrix(rng, zoom=rng.uniform(0.75, 1.3), tilt_deg=rng.normal(0, 6))
            size, border = (SIZE_PX, SIZE_PX), cv2.BORDER_REFLECT_101
            image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
            labels = cv2.warpAffine(labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    else:
        image, labels = _paste_group(pool, rng, several=several)
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _paste_group(pool: SegmenterPool, rng: np.random.Generator, *, several: bool) -> tuple[np.ndarray, np.ndarray]:
    """One to four objects, each beside or over the one before, with shadows."""
    image, labels = draw_background(pool.backgrounds, rng), np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    count = int(rng.choice([1, 2, 3, 4], p=[0.0, 0.55, 0.33, 0.12] if several else [0.35, 0.4, 0.15, 0.1]))
    largest_px = SIZE_PX * (rng.uniform(0.4, 0.85) if count == 1 else rng.uniform(0.3, 0.6))
    middle_xy, before_px, rgba = SIZE_PX * rng.uniform(0.35, 0.65, 2), 0.0, draw_object(pool, rng)
    for number in range(1, count + 1):
        twin = number > 1 and rng.random() < TWIN_SHARE
        if twin:
            rgba = np.ascontiguousarray(rgba[:, :: rng.choice([-1, 1])])
        elif number > 1:
            rgba = draw_object(pool, rng)
        longest_px = largest_px * rng.uniform(0.55, 1.0)
        if twin:  # nearer or farther
            longest_px = min(before_px * np.exp(rng.normal(0, 0.3)), 0.7 * SIZE_PX)
        if number > 1:
            angle = rng.normal(0, 0.5) + np.pi * rng.integers(2) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
            step_px = rng.uniform(0.35, 0.95) * (longest_px + before_px) / 2
            middle_xy = middle_xy + step_px * np.array([np.cos(angle), np.sin(angle)])
        layer = place(rgba, longest_px, rng, middle_xy=middle_xy)
        image, _ = paste(image, labels, layer, rng)
        labels[layer[..., 3] > 0.5] = number
        before_px = longest_px
    return image, labels


def _choose_mask(labels: np.ndarray, rng: np.random.Generator, *, several: bool) -> np.ndarray | None:
    """A blob of several objects, now and then without one of them; or one object, alone or beside others."""
    blobs = list_blobs(labels)
    rng.shuffle(blobs)
    for blob in blobs:
        numbers = list_parts(labels, blob)
        if several and len(numbers) > 1:
            left_out = int(rng.choice(numbers)) if len(numbers) > 2 and rng.random() < 0.4 else 0
            return blob & (labels != left_out)
        if not several and numbers:
            own = blob & (labels == int(rng.choice(numbers)))
            return own if own.sum() >= MIN_OBJECT_PX else None
    return None


def _read_name(name: str) -> tuple[int, int]:
    seed, number = name.split("-")
    return int(seed), int(number)
