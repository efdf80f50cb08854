"""Pictures and given masks of an item that is no video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.ledger import INTERRUPTED
from imprint.core.errors import InputError
from imprint.core.files import compute_file_digest
from imprint.core.pixels import load_image
from imprint.core.records import ClipRecord, Order

MASK_SUFFIX = ".mask.png"  # of a frame's given mask, beside its picture in the tar
IGNORE_ID = 255  # in masks with object ids: belongs to nobody
MAX_ASPECT_ERROR = 0.02  # of a mask of another size than its picture's


class BadPicture(Exception):
    """A picture or its mask cannot be used; the arguments are the ledger's reason and detail."""


def read_digest(file: Path) -> str:
    """Of all its bytes. A file that cannot be read says nothing of its content, which was there at `ingest`."""
    try:
        return compute_file_digest(file)
    except OSError as error:
        raise BadPicture(INTERRUPTED, f"{file} cannot be read ({error.strerror})") from None


def load_picture(path: Path) -> np.ndarray:
    """RGB uint8 [h, w, 3]; an alpha channel is left out."""
    try:
        return np.ascontiguousarray(load_image(path)[..., :3])
    except InputError as error:
        raise BadPicture("undecodable", str(error)) from None


def load_ids(path: Path) -> np.ndarray:
    """Pixel values uint8 [h, w] of a palette, grey or black-and-white PNG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise BadPicture("bad_mask", f"{path.name} is a colour picture; give a palette or grey PNG")
            return np.array(image.convert("L") if image.mode == "1" else image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise BadPicture("bad_mask", f"{path.name} cannot be read ({type(error).__name__})") from None


def is_black_and_white(paths: Sequence[Path]) -> bool:
    """Whether the masks only ever hold 0 and 255: then 255 is the object (DAVIS 2016), else it is nobody's."""
    for path in paths:
        try:
            if not np.isin(load_ids(path), (0, IGNORE_ID)).all():
                return False
        except BadPicture:
            continue
    return True


def number_objects(ids: np.ndarray, order: Order, black_and_white: bool) -> np.ndarray:
    """Pixel values as stored => object ids, 0 for none: of views white (above half) is object 1."""
    if order != "time" or black_and_white:
        return (ids > 127).astype(np.uint8)
    return np.where(ids == IGNORE_ID, 0, ids).astype(np.uint8)


def load_first_mask(clip: ClipRecord, size_hw: tuple[int, int], root: Path) -> np.ndarray:
    """Object ids uint8 [h, w] of a video's first frame, at the size of the kept frame; `BadPicture` if it has none."""
    mask = root / clip.masks_path / clip.masks[0]
    ids = number_objects(load_ids(mask), clip.order, is_black_and_white([mask]))
    if not ids.any():
        raise BadPicture("empty_mask", f"{mask.name} holds no object")
    return fit_mask(ids, (clip.height_px, clip.width_px), size_hw)


def fit_mask(ids: np.ndarray, picture_hw: tuple[int, ...], size_hw: tuple[int, ...]) -> np.ndarray:
    """The ids at the size of the frame, nearest pixel; `picture_hw` is the picture's size before it was scaled."""
    aspect = (ids.shape[1] / ids.shape[0]) / (picture_hw[1] / picture_hw[0])
    if abs(aspect - 1.0) > MAX_ASPECT_ERROR:
        sizes = f"mask {ids.shape[1]} x {ids.shape[0]} px, picture {picture_hw[1]} x {picture_hw[0]} px"
        raise BadPicture("mask_size", sizes)
    return cv2.resize(ids, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)
