"""Pictures of the data set: single frames and masks out of the tars by random access, and objects outlined in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.tars import list_members
from imprint.core.errors import InputError
from imprint.core.geometry import Box, box_from_mask, crop_padded, square_crop
from imprint.core.pixels import decode_image, resize_image, resize_mask
from imprint.core.records import FrameRecord, MaskRecord, load_records

FRAMES, MASKS = Path("data/frames"), Path("data/masks")
CONTEXT = 1.7  # side of a view / longer side of the object
LINE_SHARE = 1 / 140  # width of outlines / height of the picture
KEPT, REJECTED = (64, 224, 255), (255, 64, 92)  # RGB of outlines
Colour = tuple[int, int, int]


class Gallery:
    """The frames and masks of a project; tars are indexed once and read at an offset."""

    def __init__(self, root: Path = Path(".")) -> None:
        self._root = root
        self._members: dict[Path, dict[str, tuple[int, int]]] = {}
        frames = load_records(root / FRAMES / "index.parquet", FrameRecord)
        self.masks = load_records(root / MASKS / "index.parquet", MaskRecord)
        self.frames = {(row.clip_id, row.sample_index): row for row in frames}
        self.views = {(row.clip_id, row.track, row.sample_index): row for row in self.masks}

    def load_frame(self, clip_id: str, sample_index: int) -> np.ndarray:
        """RGB uint8 [h, w, 3]."""
        return self._load(FRAMES / f"{clip_id}.tar", self.frames[clip_id, sample_index].member)

    def load_mask(self, view: MaskRecord) -> np.ndarray:
        """bool [h, w] of one object."""
        return self._load(MASKS / f"{view.clip_id}.tar", view.member)[..., 0] == view.track

    def draw_view(self, view: MaskRecord, size_px: int) -> np.ndarray:
        """RGB uint8 [size_px, size_px, 3]: the object, outlined, in a square piece of its frame."""
        return draw_object(self.load_frame(view.clip_id, view.sample_index), self.load_mask(view), size_px)

    def _load(self, tar: Path, member: str) -> np.ndarray:
        path = self._root / tar
        if path not in self._members:
            self._members[path] = list_members(path)
        if member not in self._members[path]:
            raise InputError(f"{tar} has no {member}; run `dvc repro`")
        offset, size = self._members[path][member]
        with path.open("rb") as file:
            file.seek(offset)
            return decode_image(file.read(size), f"{tar}:{member}")


def draw_object(image: np.ndarray, mask: np.ndarray, size_px: int) -> np.ndarray:
    """RGB uint8 [size_px, size_px, 3]: the object of `mask` bool [h, w], outlined, and a rim of the frame around it."""
    box = square_crop(box_from_mask(mask), image.shape[:2], CONTEXT, min_side_px=1)
    size_hw = (size_px, size_px)
    view = resize_image(crop_padded(image, box, edge=True), size_hw)
    return draw_outlines(view, resize_mask(crop_padded(mask, box), size_hw), KEPT)


def draw_whole(
    image: np.ndarray, height_px: int, masks: Sequence[tuple[np.ndarray, Colour]], boxes: Sequence[Box] = ()
) -> np.ndarray:
    """The whole frame at `height_px`, with masks outlined in their colours and boxes in the colour of a rejection."""
    scale = height_px / image.shape[0]
    size_hw = (height_px, max(1, round(image.shape[1] * scale)))
    view = resize_image(image, size_hw)
    for mask, colour in masks:
        view = draw_outlines(view, resize_mask(mask, size_hw), colour)
    for box in boxes:
        y0, x0, y1, x1 = (round(edge * scale) for edge in box)
        cv2.rectangle(view, (x0, y0), (x1 - 1, y1 - 1), (0, 0, 0), 3)
        cv2.rectangle(view, (x0, y0), (x1 - 1, y1 - 1), REJECTED, 1)
    return view


def draw_outlines(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """A copy of RGB uint8 [h, w, 3], the edge of `mask` bool [h, w] drawn in colour on a dark line."""
    out = np.ascontiguousarray(image).copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width_px = max(1, round(image.shape[0] * LINE_SHARE))
    cv2.drawContours(out, contours, -1, (16, 16, 16), width_px + 2)
    cv2.drawContours(out, contours, -1, colour, width_px)
    return out


def join_tiles(tiles: Sequence[np.ndarray], gap_px: int = 4) -> np.ndarray:
    """Pictures of one height side by side on white."""
    gap = np.full((tiles[0].shape[0], gap_px, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the places 0 ... count - 1, evenly, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(place * (count - 1) / (limit - 1)) for place in range(limit)] if limit > 1 else [0]
