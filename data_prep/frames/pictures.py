"""Pictures and given masks of an item that is no video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.ledger import INTERRUPTED
from imprint.core.errors import InputError
from imprint.core.files import compute_file_digest
from imprint.core.pixels import load_image, load_mask
from imprint.core.readers import to_eight_bits
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
    """Object numbers uint8 [h, w] of a palette, grey or black-and-white picture, as they are stored.

    A palette's numbers are those of its colours where these are DAVIS' (an optimiser sorts a palette anew in each
    file), else its own.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return _renumber(np.array(image), image.getpalette("RGB") or [])
            if image.mode == "1":
                return np.array(image.convert("L"))
            pixels = np.array(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadPicture("bad_mask", f"{path.name} cannot be read ({type(error).__name__})") from None
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all() and image.mode == "RGB":
        pixels = pixels[..., 0]
    if pixels.ndim == 3 or pixels.dtype.kind == "f":
        raise BadPicture("bad_mask", f"{path.name} is a colour picture; give a palette or grey PNG")
    return to_eight_bits(pixels)


def load_view_mask(path: Path) -> np.ndarray:
    """The one object of a view, uint8 [h, w], 1 where it is: any mask that the composite's own reader takes."""
    try:
        return load_mask(path).astype(np.uint8)
    except InputError as error:
        raise BadPicture("bad_mask", str(error)) from None


def _renumber(indices: np.ndarray, palette: Sequence[int]) -> np.ndarray:
    """Indices => places of their colours in DAVIS' palette, if all that occur are there."""
    davis = {colour: number for number, colour in enumerate(_davis_colours())}
    colours: list[tuple[int, ...]] = [tuple(palette[at : at + 3]) for at in range(0, len(palette), 3)]
    used = np.unique(indices).tolist()
    if any(index >= len(colours) or colours[index] not in davis for index in used):
        return _by_brightness(indices, colours, used)
    table = np.zeros(256, np.uint8)
    table[used] = [davis[colours[index]] for index in used]
    return table[indices]


def _by_brightness(indices: np.ndarray, colours: Sequence[tuple[int, ...]], used: Sequence[int]) -> np.ndarray:
    """Indices as they are; but of black and white, whichever comes first, black is nobody's."""
    black_and_white: dict[tuple[int, ...], int] = {(0, 0, 0): 0, (255, 255, 255): 255}
    if len(used) > 2 or any(index >= len(colours) or colours[index] not in black_and_white for index in used):
        return indices.astype(np.uint8)
    table = np.zeros(256, np.uint8)
    table[list(used)] = [black_and_white[colours[index]] for index in used]
    return table[indices]


def _davis_colours() -> list[tuple[int, ...]]:
    """The 256 colours of DAVIS, which are PASCAL VOC's: a number's bits, dealt to red, green and blue in turn."""
    return [
        tuple(sum(((number >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))
        for number in range(256)
    ]


def is_black_and_white(paths: Sequence[Path]) -> bool:
    """Whether the masks only ever hold 0 and 255: then 255 is the object (DAVIS 2016), else it is nobody's."""
    for path in paths:
        try:
            if not np.isin(load_ids(path), (0, IGNORE_ID)).all():
                return False
        except BadPicture:
            continue
    return True


def load_objects(path: Path, order: Order, black_and_white: bool) -> np.ndarray:
    """Object ids uint8 [h, w] of a given mask, 0 for none; `BadPicture` if it cannot be read. A view shows one."""
    return number_objects(load_ids(path), black_and_white) if order == "time" else load_view_mask(path)


def number_objects(ids: np.ndarray, black_and_white: bool) -> np.ndarray:
    """Numbers of a sequence's mask as stored => object ids, 0 for none."""
    if black_and_white:
        return (ids > 127).astype(np.uint8)
    return np.where(ids == IGNORE_ID, 0, ids).astype(np.uint8)


def load_first_mask(clip: ClipRecord, size_hw: tuple[int, int], root: Path) -> np.ndarray:
    """Object ids uint8 [h, w] of a video's first frame, at the size of the kept frame; `BadPicture` if it has none."""
    mask = root / clip.masks_path / clip.masks[0]
    ids = load_objects(mask, clip.order, is_black_and_white([mask]))
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
