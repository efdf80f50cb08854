"""What a user may give to be composited, read and checked before any work begins. Loads no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from imprint.core.errors import InputError
from imprint.core.foreground import cut_along
from imprint.core.masks import MaskLevel
from imprint.core.names import PICTURE_SUFFIXES, natural_key
from imprint.core.params import load_params
from imprint.core.pixels import load_image, load_mask

Mode = Literal["insert", "replace"]
MAX_NAMED = 5  # of a folder's entries that are no pictures
DEFAULT_LEVEL: MaskLevel = "box"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One composite to make.

    object_rgba: uint8 [h, w, 4], the object's opacity in its alpha; more_objects: further views of the object, in any
    order, for a model that was trained with several; background: RGB uint8 [h, w, 3];
    hole: bool [h, w], true where the object goes, nothing else changes; level: how the hole is to be read, from
    `exact` (the object's very outline: fill it) to `box` (a place: sit inside it). A model that was trained without
    the condition ignores the level, and None leaves it out; mode: `insert` keeps what lies in the hole beside the
    object, `replace` never sees it, as in the paper, and None is what the model does best; shadow_reach: how far the
    object's shadow may leave the hole, in its longer sides; at 0 nothing outside the hole changes.
    """

    object_rgba: np.ndarray
    background: np.ndarray
    hole: np.ndarray
    level: MaskLevel | None = DEFAULT_LEVEL
    seed: int = 0
    more_objects: tuple[np.ndarray, ...] = ()
    mode: Mode | None = None
    shadow_reach: float = 0.0


def load_request(
    object_paths: Sequence[Path],
    background_path: Path,
    mask_path: Path,
    *,
    params_path: Path,
    level: MaskLevel,
    seed: int,
) -> Request:
    """Read the pictures and check them. `InputError` names the file and the remedy.

    An object image without transparency is segmented as `params_path` says. Transparency of the background is ignored.
    """
    background = load_image(background_path, "background")[..., :3]
    hole = load_mask(mask_path)
    check_hole(hole, background.shape[:2], f"mask {mask_path}")
    pictures = {f"object {path}": load_image(path, "object") for path in object_paths}
    for name, picture in pictures.items():
        check_object(picture, name)
    first, *others = [cut_out(picture, params_path, name) for name, picture in pictures.items()]
    return Request(
        object_rgba=first, more_objects=tuple(others), background=background, hole=hole, level=level, seed=seed
    )


def list_views(paths: Sequence[Path]) -> list[Path]:
    """The pictures that are named, and those in the folders that are named, in natural order. `InputError` for a folder
    without any; what else a folder holds is told on standard error."""
    found: list[Path] = []
    for path in paths:
        found += _list_pictures(path) if path.is_dir() else [path]
    return found


def _list_pictures(folder: Path) -> list[Path]:
    entries = sorted((one for one in folder.iterdir() if not one.name.startswith(".")), key=natural_key)
    pictures = [one for one in entries if one.suffix.lower() in PICTURE_SUFFIXES and one.is_file()]
    if not pictures:
        raise InputError(f"object {folder} is a folder without pictures; give PNG, JPEG or WebP files in it")
    others = [one.name for one in entries if one not in pictures]
    if others:
        shown = ", ".join(others[:MAX_NAMED]) + (" ..." if len(others) > MAX_NAMED else "")
        print(f"object {folder}: not read as pictures: {shown} ({len(others)} of {len(entries)})", file=sys.stderr)
    return pictures


def check_hole(hole: np.ndarray, background_hw: tuple[int, ...], name: str = "the mask") -> None:
    """`InputError` unless the hole has the background's size, some white and some black."""
    if hole.shape != tuple(background_hw):
        sizes = [f"{width} x {height}" for height, width in (hole.shape, background_hw)]
        raise InputError(
            f"{name} is {sizes[0]} px but the background {sizes[1]} px; give a mask of the background's size"
        )
    if not hole.any():
        raise InputError(f"{name} is empty; paint white where the object goes")
    if hole.all():
        raise InputError(f"{name} is all white; leave black what must stay as it is")


def check_object(image: np.ndarray, name: str = "the object") -> None:
    """`InputError` if the alpha channel of an RGBA picture leaves nothing."""
    if image.shape[2] != 4 or (image[..., 3] > 127).any():
        return
    most = int(image[..., 3].max())
    if most == 0:
        raise InputError(f"{name} has no pixels: its alpha channel is transparent everywhere; give another cut-out")
    raise InputError(
        f"{name} is at most {most / 255:.0%} opaque (alpha {most} of 255), and what is less than half opaque is not "
        "taken for the object; give a cut-out with an opaque object"
    )


def is_cut_out(alpha: np.ndarray) -> bool:
    """Whether an alpha channel, uint8 [h, w], leaves something out: a clear place of three pixels each way, at least. A
    nearly opaque picture, a stray clear pixel or a clear rim are what editors leave behind."""
    clear = np.pad((alpha < 128).astype(np.uint8), 1)
    return bool(cv2.erode(clear, np.ones((3, 3), np.uint8)).any())


def cut_out(image: np.ndarray, params_path: Path, name: str = "the object") -> np.ndarray:
    """RGBA uint8: the picture itself where its alpha cuts something out, else what segmentation finds in it (by the
    network of `segment_objects` in the params file), without the background's share in its edge."""
    if image.shape[2] == 4 and is_cut_out(image[..., 3]):
        return image
    from imprint.segmentation import build_session, segment_image

    mask = segment_image(image[..., :3], build_session(load_params(params_path).segment_objects))
    if not mask.any():
        raise InputError(f"{name} has no pixels: segmentation finds nothing in it; give a PNG with an alpha channel")
    return cut_along(image[..., :3], mask)


def check_output(path: Path) -> None:
    """`InputError` unless a PNG can be written there."""
    if path.suffix.lower() != ".png":
        raise InputError(f"output {path} is no .png; other formats would change the pixels outside the mask")
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"output {path} cannot be written; give a file name in an existing, writable folder")
