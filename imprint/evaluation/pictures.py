"""Pictures of the report: one strip per trial, and the grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint.core.pixels import put_on_black, resize_image, save_image
from imprint.evaluation.composites import METHODS, Composites
from imprint.evaluation.trials import Trial

TILES = ("reference", "hole", "ours", "from noise", "alpha paste", "matched", "Poisson", "truth")
Pair = tuple[str, str]  # case and view change
_GAP_PX = 4
_PAPER = 255  # background of strips and grid
_ABSENT = 238  # a tile of a method that was not tried
_HOLE_COLOUR = np.array([236, 64, 122], np.float32)
_LABEL_PX = 92
_HEADER_PX = 26
_MIN_TILE_PX = 96


def choose_shown(trials: Sequence[Trial], count: int) -> list[Pair]:
    """The first cases in the archive's order with all their view changes, good or bad."""
    pairs = dict.fromkeys((trial.place, trial.case.name, trial.view_change) for trial in trials)
    return [(name, view_change) for _, name, view_change in sorted(pairs, key=lambda pair: pair[0])[:count]]


def build_strip(trial: Trial, composites: Composites, number: int) -> np.ndarray:
    """RGB uint8: the TILES of one trial side by side; `number` is its place among the composites."""
    side_hw = trial.case.plate.shape[:2]
    made = [composites[method][number] for method in METHODS]
    absent = np.full((*side_hw, 3), _ABSENT, np.uint8)
    tiles = [
        fit_tile(put_on_black(trial.reference), side_hw),
        mark_hole(trial.case.plate, trial.hole),
        *(absent if answer is None else answer.picture for answer in made),
        trial.case.truth,
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


def save_strips(folder: Path, trials: Sequence[Trial], composites: Composites, pairs: Sequence[Pair]) -> None:
    """`<folder>/<level>/<case>_<view change>.png` for the given pairs."""
    for number, trial in enumerate(trials):
        if (trial.case.name, trial.view_change) in pairs:
            path = folder / trial.level / f"{trial.case.name}_{trial.view_change}.png"
            save_image(path, build_strip(trial, composites, number))


def build_grid(trials: Sequence[Trial], composites: Composites, pairs: Sequence[Pair]) -> np.ndarray:
    """RGB uint8: a labelled row per pair, in order, failures included; the mask levels take turns."""
    levels = list(dict.fromkeys(trial.level for trial in trials))
    numbers = {(trial.case.name, trial.view_change, trial.level): n for n, trial in enumerate(trials)}
    chosen = [numbers[(*pair, levels[place % len(levels)])] for place, pair in enumerate(pairs)]
    strips = [build_strip(trials[number], composites, number) for number in chosen]
    scale = max(1, -(-_MIN_TILE_PX // trials[0].case.plate.shape[0]))
    strips = [strip.repeat(scale, axis=0).repeat(scale, axis=1) for strip in strips]
    height, width = strips[0].shape[:2]
    grid = Image.new("RGB", (_LABEL_PX + width, _HEADER_PX + len(strips) * (height + _GAP_PX)), "white")
    draw = ImageDraw.Draw(grid)
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    for column, title in enumerate(TILES):
        centre_px = _LABEL_PX + (column + 0.5) * (width + _GAP_PX * scale) / len(TILES)
        draw.text((centre_px, _HEADER_PX / 2), title, fill="black", font=font, anchor="mm")
    for row, (number, strip) in enumerate(zip(chosen, strips, strict=True)):
        y0, trial = _HEADER_PX + row * (height + _GAP_PX), trials[number]
        grid.paste(Image.fromarray(strip), (_LABEL_PX, y0))
        lines = (trial.case.name.replace("_", " "), trial.level, f"{trial.view_change} deg")
        for line, text in enumerate(lines):
            colour = "black" if line == 0 else (120, 120, 120)
            draw.text((8, y0 + height / 2 + 18 * (line - 1)), text, fill=colour, font=small, anchor="lm")
    return np.asarray(grid)
