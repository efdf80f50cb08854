"""Histograms of the report page as inline SVG."""

from __future__ import annotations

import math

import numpy as np

_WIDTH_PX, _HEIGHT_PX, _LEFT_PX, _RIGHT_PX, _TOP_PX, _AXIS_PX = 340, 150, 38, 12, 14, 24
_MAX_BINS = 24
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def build_histogram(values: np.ndarray) -> str:
    """SVG of how often values occur; whole numbers get bins of whole width. A dashed line marks the median."""
    if not values.size:
        return '<p class="none">none</p>'
    edges = choose_edges(values)
    counts, _ = np.histogram(values, edges)
    top = int(counts.max())
    bottom_px = _HEIGHT_PX - _AXIS_PX

    def place(value: float) -> float:
        share = (value - edges[0]) / (edges[-1] - edges[0])
        return _LEFT_PX + float(share) * (_WIDTH_PX - _LEFT_PX - _RIGHT_PX)

    bars = []
    for low, high, count in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        height_px, width_px = (bottom_px - _TOP_PX) * count / top, place(high) - place(low) - 1
        bars.append(
            f'<rect x="{place(low) + 0.5:.1f}" y="{bottom_px - height_px:.1f}" width="{width_px:.1f}" '
            f'height="{height_px:.1f}" class="bar"><title>{low:.4g} – {high:.4g}: {count}</title></rect>'
        )
    median_px = place(float(np.median(values)))
    parts = [
        f'<text x="{_LEFT_PX - 6}" y="{_TOP_PX + 4}" text-anchor="end" class="label">{top}</text>',
        f'<text x="{_LEFT_PX - 6}" y="{bottom_px}" text-anchor="end" class="label">0</text>',
        *bars,
        f'<line x1="{_LEFT_PX}" x2="{_WIDTH_PX - _RIGHT_PX}" y1="{bottom_px}" y2="{bottom_px}" class="axis"/>',
        f'<line x1="{median_px:.1f}" x2="{median_px:.1f}" y1="{_TOP_PX - 6}" y2="{bottom_px}" class="reference">'
        f"<title>median {np.median(values):.4g}</title></line>",
        *(
            f'<text x="{place(tick):.1f}" y="{bottom_px + 16}" text-anchor="middle" class="label">{tick:.4g}</text>'
            for tick in choose_ticks(float(edges[0]), float(edges[-1]))
        ),
    ]
    return f'<svg viewBox="0 0 {_WIDTH_PX} {_HEIGHT_PX}" role="img">{"".join(parts)}</svg>'


def choose_edges(values: np.ndarray) -> np.ndarray:
    """Edges of at most 24 bins of one round width that hold all values; whole numbers lie in the middle of a bin's."""
    low, high = float(values.min()), float(values.max())
    if np.all(values == np.round(values)):
        width = max(1, math.ceil((high - low + 1) / _MAX_BINS))
        return np.arange(low - 0.5, high + width + 0.5, width)
    width = _round_up((high - low) / (_MAX_BINS - 1) or abs(high) / _MAX_BINS)
    start = math.floor(low / width)
    return np.arange(start, max(math.floor(high / width) + 1, start + 1) + 1) * width


def choose_ticks(low: float, high: float) -> list[float]:
    """Three to seven round values between the ends."""
    step = _round_up((high - low) / 6)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _round_up(width: float) -> float:
    """The next round step: 1, 2, 2.5 or 5 times a power of ten."""
    scale = 10.0 ** math.floor(math.log10(width))
    return next(step * scale for step in _STEPS if step * scale >= width * (1 - 1e-9))
