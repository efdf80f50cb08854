"""What the base model is to reach on objects that it has never seen, and how far a measured one is from it.

Up to 45 degrees of view change: beyond, no method can know the side that is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.core.errors import InputError
from imprint.evaluation.protocol import load_metrics
from imprint.evaluation.table import COLUMNS, TREES, describe_protocol, format_markdown, format_number

PASTE_GAIN_DB = {"object_psnr_db": 2.0, "shadow_psnr_db": 5.0}  # above the alpha paste
SHARPNESS = (0.9, 1.25)
IDENTITY_LOSS = 0.03  # below the true views' own
OUTLINE_IOU = {"exact": 0.95, "soft": 0.93, "coarse": 0.88, "box": 0.8}
METRICS = ("object_psnr_db", "sharpness", "identity_top1", "copy_distance", "outline_iou", "shadow_psnr_db")


@dataclass(frozen=True)
class Goal:
    """One measure at one mask level. `met` is None where there is no goal, or nothing was measured."""

    metric: str
    level: str
    low: float | None
    high: float | None
    paste: float | None
    value: float | None
    interval: list[float] | None

    @property
    def met(self) -> bool | None:
        if self.value is None or (self.low is None and self.high is None):
            return None
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


def print_markdown(path: Path) -> None:
    """The tables and the goals of `evaluation.json` or of `world.json`. `InputError` if it is neither."""
    metrics = load_metrics(path)
    if "composites" in metrics:
        metrics = describe_world(metrics)
    if "cells" not in metrics:
        raise InputError(f"{path} is of an earlier version and has no view changes; evaluate the model again")
    print(format_all(metrics))


def format_all(metrics: dict[str, Any]) -> str:
    """Both tables and the goals."""
    parts = [f"{title}:\n\n{format_markdown(metrics, tree)}" for tree, (title, _) in TREES.items()]
    return "\n\n".join([*parts, "Goals:", format_goals(metrics)])


def describe_world(results: dict[str, Any]) -> dict[str, Any]:
    """A world's composites as tables and goals want them: like `metrics/evaluation.json`."""
    composites = results["composites"]
    return {**composites, "protocol": {**results["protocol"], "num_cases": composites.get("num_objects")}}


def list_goals(metrics: dict[str, Any]) -> list[Goal]:
    """From the numbers of `evaluate` or of `evaluate-world`'s composites."""
    goals = []
    for metric in METRICS:
        for level, methods in metrics["levels"].items():
            value, paste = methods["ours"][metric], methods["paste"][metric]
            low, high = _find_bounds(metric, level, paste, metrics["identity"]["near_ceiling_top1"])
            interval = metrics["intervals"]["levels"][level]["ours"][metric]
            goals.append(Goal(metric, level, low, high, paste, value, interval))
    return goals


def format_goals(metrics: dict[str, Any]) -> str:
    """As a table in Markdown."""
    lines = ["| measure | mask | goal | alpha paste | this model (95 %) | met |", "|---|---|---|---:|---|---|"]
    for goal in list_goals(metrics):
        value = format_number(goal.value, goal.metric)
        if goal.interval:
            value += f" ({' to '.join(format_number(end, goal.metric) for end in goal.interval)})"
        met = {True: "yes", False: "no", None: ""}[goal.met]
        paste = format_number(goal.paste, goal.metric)
        cells = (COLUMNS[goal.metric][0], goal.level, _format_bounds(goal), paste, value, met)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"View change up to 45 degrees; {describe_protocol(metrics)}."])


def _find_bounds(
    metric: str, level: str, paste: float | None, ceiling: float | None
) -> tuple[float | None, float | None]:
    if metric in PASTE_GAIN_DB:
        return (None if paste is None else paste + PASTE_GAIN_DB[metric]), None
    if metric == "sharpness":
        return SHARPNESS
    if metric == "identity_top1":
        return (None if ceiling is None else ceiling - IDENTITY_LOSS), None
    return (OUTLINE_IOU.get(level) if metric == "outline_iou" else None), None


def _format_bounds(goal: Goal) -> str:
    if goal.low is None:
        return ""
    low = format_number(goal.low, goal.metric)
    return f"{low} to {format_number(goal.high, goal.metric)}" if goal.high is not None else f"at least {low}"
