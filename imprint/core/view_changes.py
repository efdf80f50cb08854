"""Strata of view change: the angle between the directions from which reference and truth see the object."""

from __future__ import annotations

from typing import Literal, get_args

ViewChange = Literal["0-20", "20-45", "45-90", "90-180"]  # degrees; half-open, the last one closed
VIEW_CHANGES: tuple[ViewChange, ...] = get_args(ViewChange)
NEAR: tuple[ViewChange, ...] = ("0-20", "20-45")  # up to 45 degrees: beyond, no method can know the side that is seen


def get_range_deg(view_change: ViewChange) -> tuple[int, int]:
    """From and to, in degrees."""
    low, high = view_change.split("-")
    return int(low), int(high)


def find_view_change(angle_deg: float) -> ViewChange:
    """The stratum of an angle, 0 to 180 degrees."""
    return next(name for name in reversed(VIEW_CHANGES) if angle_deg >= get_range_deg(name)[0])


def name_reference(view_change: ViewChange) -> str:
    """File stem of a case's reference: `reference_020` for `20-45`."""
    return f"reference_{get_range_deg(view_change)[0]:03d}"
