"""Test cases with ground truth, drawn in a few milliseconds: two-coloured shapes with a shadow on a striped floor."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np

from imprint.core.masks import add_contact_margin, compute_mask_levels
from imprint.core.pixels import encode_image
from imprint.core.view_changes import VIEW_CHANGES, name_reference

_KINDS = ("ellipse", "box", "triangle")


def draw_case(seed: int, size_px: int) -> dict[str, np.ndarray]:
    """Pictures of one case by file stem; `reference`: one view of the object, for whoever needs no more."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(30, 256, 3).tolist() for _ in range(2))
    plate = _draw_plate(rng, size_px)
    centre = rng.integers(int(0.4 * size_px), int(0.6 * size_px), 2)
    shape = _draw_shape(seed, size_px, centre, 0.2)
    shadow = np.roll(shape, (size_px // 12, size_px // 12), (0, 1)) & ~shape
    truth = np.where(shadow[..., None], plate // 2, plate)
    truth = np.where(shape[..., None], _paint(size_px, first, second, shift=0), truth).astype(np.uint8)
    opacity = _draw_shape(seed, size_px, np.array([size_px // 2] * 2), 0.35).astype(np.uint8) * 255
    references = {
        name_reference(view_change): np.dstack([_paint(size_px, first, second, shift=3 + number), opacity])
        for number, view_change in enumerate(VIEW_CHANGES)
    }
    levels = compute_mask_levels(shape)
    levels["box"] = levels["box"] | add_contact_margin(shadow | shape, size_px, 0.02)
    return {
        **references,
        "reference": references["reference_000"],
        "plate": plate,
        "truth": truth,
        "object_mask": shape,
        "shadow_mask": shadow,
        **{f"hole_{level}": hole for level, hole in levels.items()},
    }


def write_cases(path: Path, num_cases: int, size_px: int = 64) -> Path:
    """A tar of cases as `demo/` makes them."""
    names = [f"case_{number:03d}" for number in range(num_cases)]
    with tarfile.open(path, "w") as archive:
        _add(archive, "cases/cases.json", json.dumps({"cases": names}).encode())
        for number, name in enumerate(names):
            for stem, picture in draw_case(number, size_px).items():
                if stem != "reference":
                    _add(archive, f"cases/{name}/{stem}.png", encode_image(picture))
    return path


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _draw_plate(rng: np.random.Generator, size_px: int) -> np.ndarray:
    rows = np.arange(size_px)[:, None, None]
    base = rng.integers(120, 200, (1, 1, 3)) + 20 * np.sin(rows / 5)
    return np.clip(base + np.zeros((size_px, size_px, 3)), 0, 255).astype(np.uint8)


def _draw_shape(seed: int, size_px: int, centre: np.ndarray, share: float) -> np.ndarray:
    canvas = np.zeros((size_px, size_px), np.uint8)
    radius_px = int(share * size_px)
    y, x = (int(value) for value in centre)
    kind = _KINDS[seed % len(_KINDS)]
    if kind == "ellipse":
        cv2.ellipse(canvas, (x, y), (radius_px, int(0.8 * radius_px)), 0, 0, 360, 1, -1)
    elif kind == "box":
        cv2.rectangle(canvas, (x - radius_px, y - radius_px // 2), (x + radius_px, y + radius_px // 2), 1, -1)
    else:
        corners = np.array([[x, y - radius_px], [x - radius_px, y + radius_px], [x + radius_px, y + radius_px]])
        cv2.fillPoly(canvas, [corners], 1)
    return canvas > 0


def _paint(size_px: int, first: list[int], second: list[int], *, shift: int) -> np.ndarray:
    stripes = ((np.arange(size_px) + shift) // 6 % 2 == 0)[None, :, None]
    return np.where(stripes, np.uint8(first), np.uint8(second)).repeat(size_px, axis=0)
