"""The losses that the two trainings logged, as inline SVG of the report page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imprint.core.outside import load_json

TITLES = {
    "loss": "training",
    "val_loss": "held out, right reference",
    "val_loss_shuffled": "held out, another reference",
}
CURVE_COLOURS = {"loss": "#98a2b3", "val_loss": "#d6336c", "val_loss_shuffled": "#1c7ed6"}
_LOG = "train_log.json"
_WIDTH_PX, _HEIGHT_PX, _LEFT_PX, _RIGHT_PX, _BOTTOM_PX = 340, 190, 46, 12, 26

Curve = list[tuple[int, float]]  # (step, loss), by step


def load_curves(models: Mapping[str, Path]) -> dict[str, dict[str, Curve]]:
    """Stage => name of a loss => its curve; a model without a log, as a shipped checkpoint, has none."""
    curves = {}
    for stage, folder in models.items():
        path = folder / _LOG
        entries = load_json(path) if path.is_file() else []
        curves[stage] = {
            name: [(entry["step"], entry[name]) for entry in entries if name in entry]
            for name in TITLES
            if any(name in entry for entry in entries)
        }
    return curves


def draw_curves(curves: Mapping[str, Curve]) -> str:
    """SVG: losses from zero upwards over the steps."""
    points = [point for curve in curves.values() for point in curve]
    last_step, top = max(step for step, _ in points), _round_up(max(loss for _, loss in points))
    width_px, height_px = _WIDTH_PX - _LEFT_PX - _RIGHT_PX, _HEIGHT_PX - _BOTTOM_PX - 8

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT_PX + point[0] / last_step * width_px, 8 + (1.0 - point[1] / top) * height_px

    parts = _draw_axes(place, last_step, top)
    parts += [_draw_curve([place(point) for point in curve], name) for name, curve in curves.items()]
    return f'<svg viewBox="0 0 {_WIDTH_PX} {_HEIGHT_PX}" role="img">{"".join(parts)}</svg>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= value)


def _draw_axes(place: Callable[[tuple[float, float]], tuple[float, float]], last_step: int, top: float) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        x_px, y_px = place((0.0, share * top))
        label = f"{share * top:.3g}"
        parts.append(f'<line x1="{x_px}" x2="{_WIDTH_PX - _RIGHT_PX}" y1="{y_px:.1f}" y2="{y_px:.1f}" class="tick"/>')
        parts.append(f'<text x="{x_px - 6}" y="{y_px + 4:.1f}" text-anchor="end" class="label">{label}</text>')
        x_px, y_px = place((share * last_step, 0.0))
        anchor = "end" if share == 1.0 else "middle"
        step = round(share * last_step)
        parts.append(f'<text x="{x_px:.1f}" y="{y_px + 17:.1f}" text-anchor="{anchor}" class="label">{step:,}</text>')
    return parts


def _draw_curve(points_px: Sequence[tuple[float, float]], name: str) -> str:
    colour = CURVE_COLOURS[name]
    path = " ".join(f"{x_px:.1f},{y_px:.1f}" for x_px, y_px in points_px)
    dots = [f'<circle cx="{x_px:.1f}" cy="{y_px:.1f}" r="3" fill="{colour}"/>' for x_px, y_px in points_px]
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    return f"<g><title>{TITLES[name]}</title>{line}{'' if name == 'loss' else ''.join(dots)}</g>"
