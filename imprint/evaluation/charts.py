"""Small charts of the report page as inline SVG: a dot per method with its bootstrap interval, one group per level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from imprint.evaluation.table import METHOD_TITLES, format_number

COLOURS = {
    "ours": "#d6336c",
    "from_noise": "#7048e8",
    "paste": "#1c7ed6",
    "matched": "#f08c00",
    "poisson": "#2b8a3e",
}
_WIDTH_PX, _LEFT_PX, _RIGHT_PX = 340, 56, 14
_ROW_PX, _GROUP_GAP_PX, _AXIS_PX = 15, 12, 26


def build_chart(metrics: dict[str, Any], name: str, tree: str, reference: dict[str, float] | None = None) -> str:
    """SVG of one metric over the groups of a tree (`levels` or `view_changes`) and methods; `reference` draws labelled
    vertical lines at fixed values."""
    groups, intervals = metrics[tree], metrics["intervals"][tree]
    low, high = _find_range(intervals, name)
    methods = [method for method in METHOD_TITLES if any(method in cells for cells in groups.values())]
    group_px = _ROW_PX * len(methods) + _GROUP_GAP_PX
    height_px = group_px * len(groups) + _AXIS_PX

    def place(value: float) -> float:
        return _LEFT_PX + (value - low) / (high - low) * (_WIDTH_PX - _LEFT_PX - _RIGHT_PX)

    parts = [_draw_axis(place, low, high, height_px - _AXIS_PX)]
    parts += [_draw_reference(place(value), title, height_px) for title, value in (reference or {}).items()]
    for number, group in enumerate(groups):
        top_px = number * group_px + _GROUP_GAP_PX / 2
        middle_px = top_px + _ROW_PX * len(methods) / 2 + 4
        parts.append(f'<text x="{_LEFT_PX - 8}" y="{middle_px}" text-anchor="end">{group}</text>')
        for row, method in enumerate(methods):
            mean, interval = (part[group].get(method, {}).get(name) for part in (groups, intervals))
            if mean is not None:
                y_px = top_px + (row + 0.5) * _ROW_PX
                parts.append(_draw_dot(place(mean), [place(end) for end in interval], y_px, method, mean, name))
    return f'<svg viewBox="0 0 {_WIDTH_PX} {height_px}" role="img">{"".join(parts)}</svg>'


def _find_range(intervals: dict[str, Any], name: str) -> tuple[float, float]:
    """Shares go from 0 to 1; sharpness and distances from 0; decibels over all intervals; whole steps of 2 and more."""
    cells = [cells.get(name) for methods in intervals.values() for cells in methods.values()]
    ends = [end for cell in cells if cell is not None for end in cell]
    if not ends:
        return 0.0, 1.0
    if name.endswith("_db"):
        return 2.0 * (min(ends) // 2), 2.0 * (max(ends) // 2 + 1)
    return 0.0, 1.0 if max(ends) <= 1.0 else 0.2 * math.ceil(max(ends) / 0.2)


def _draw_axis(place: Callable[[float], float], low: float, high: float, bottom_px: float) -> str:
    step = 0.2 * math.ceil((high - low) / 1.2) if high < 4.0 else 2.0 * math.ceil((high - low) / 12.0)
    ticks = [low + number * step for number in range(int((high - low) / step + 1e-6) + 1)]
    lines = [
        f'<line x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="0" y2="{bottom_px}" class="tick"/>'
        f'<text x="{place(tick):.1f}" y="{bottom_px + 16}" text-anchor="middle" class="label">{tick:.3g}</text>'
        for tick in ticks
    ]
    return "".join(lines)


def _draw_reference(x_px: float, title: str, height_px: float) -> str:
    return (
        f'<line x1="{x_px:.1f}" x2="{x_px:.1f}" y1="0" y2="{height_px - _AXIS_PX}" class="reference">'
        f"<title>{title}</title></line>"
    )


def _draw_dot(x_px: float, ends_px: list[float], y_px: float, method: str, mean: float, name: str) -> str:
    colour = COLOURS[method]
    return (
        f"<g><title>{METHOD_TITLES[method]}: {format_number(mean, name)}</title>"
        f'<line x1="{ends_px[0]:.1f}" x2="{ends_px[1]:.1f}" y1="{y_px}" y2="{y_px}" stroke="{colour}" '
        f'stroke-width="2.5" stroke-linecap="round" opacity="0.45"/>'
        f'<circle cx="{x_px:.1f}" cy="{y_px}" r="4" fill="{colour}"/></g>'
    )
