"""Pictures of the report: one strip per case and level, and the grid of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint.core.masks import MaskLevel
from imprint.core.pixels import put_on_black, resize_image, save_image
from imprint.evaluation.cases import Case
from imprint.evaluation.composites import Composites

TILES = ("reference", "plate", "hole", "ours", "alpha paste", "Poisson", "truth")
_GAP_PX = 4
_PAPER = 255  # background of strips and grid
_HOLE_COLOUR = np.array([236, 64, 122], np.float32)
_LABEL_PX = 92
_HEADER_PX = 26
_MIN_TILE_PX = 96


def build_strip(case: Case, level: MaskLevel, composites: Composites, number: int) -> np.ndarray:
    """RGB uint8: the seven TILES of one case side by side; `number` is the case's place among the composites."""
    side_hw = case.plate.shape[:2]
    methods = composites[level]
    tiles = [
        fit_tile(put_on_black(case.reference), side_hw),
        case.plate,
        mark_hole(case.plate, case.holes[level]),
        *(methods[method][number] for method in ("ours", "paste", "poisson")),
        case.truth,
    ]
    gap = np.full((side_hw[0], _GAP_PX, 3), _PAPER, np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)]
    return np.concatenate(parts[:-1], axis=1)


def mark_hole(plate: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The plate with the hole in colour, half transparent."""
    tinted = np.rint(0.35 * plate + 0.65 * _HOLE_COLOUR).astype(np.uint8)
    return np.where(hole[..., None], tinted, plate)


def fit_tile(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Scale RGB uint8 to fit, keeping its shape, on black."""
    scale = min(size_hw[0] / image.shape[0], size_hw[1] / image.shape[1])
    small = resize_image(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))
    tile = np.zeros((*size_hw, 3), np.uint8)
    y0, x0 = (size_hw[0] - small.shape[0]) // 2, (size_hw[1] - small.shape[1]) // 2
    tile[y0 : y0 + small.shape[0], x0 : x0 + small.shape[1]] = small
    return tile


def save_strips(folder: Path, cases: Sequence[Case], composites: Composites) -> None:
    """`<folder>/<level>/<case>.png` for the given cases, which are the first ones of the composites."""
    for level, (number, case) in itertools.product(composites, enumerate(cases)):
        save_image(folder / level / f"{case.name}.png", build_strip(case, level, composites, number))


def build_grid(cases: Sequence[Case], composites: Composites) -> np.ndarray:
    """RGB uint8: a labelled row per case, in order, failures included; the mask levels take turns."""
    levels: list[MaskLevel] = list(composites)
    chosen: list[MaskLevel] = [levels[number % len(levels)] for number in range(len(cases))]
    strips = [build_strip(case, chosen[n], composites, n) for n, case in enumerate(cases)]
    scale = max(1, -(-_MIN_TILE_PX // cases[0].plate.shape[0]))
    strips = [strip.repeat(scale, axis=0).repeat(scale, axis=1) for strip in strips]
    height, width = strips[0].shape[:2]
    grid = Image.new("RGB", (_LABEL_PX + width, _HEADER_PX + len(strips) * (height + _GAP_PX)), "white")
    draw = ImageDraw.Draw(grid)
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    for column, title in enumerate(TILES):
        centre_px = _LABEL_PX + (column + 0.5) * (width + _GAP_PX * scale) / len(TILES)
        draw.text((centre_px, _HEADER_PX / 2), title, fill="black", font=font, anchor="mm")
    for row, (case, level, strip) in enumerate(zip(cases, chosen, strips, strict=True)):
        y0 = _HEADER_PX + row * (height + _GAP_PX)
        grid.paste(Image.fromarray(strip), (_LABEL_PX, y0))
        draw.text((8, y0 + height / 2 - 9), case.name.replace("_", " "), fill="black", font=small, anchor="lm")
        draw.text((8, y0 + height / 2 + 9), level, fill=(120, 120, 120), font=small, anchor="lm")
    return np.asarray(grid)
