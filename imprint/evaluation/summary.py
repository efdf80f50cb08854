"""From pictures to rows, from rows to the numbers of `metrics/evaluation.json`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.params import Evaluate
from imprint.core.progress import show_progress
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.cases import Case
from imprint.evaluation.composites import METHODS, Composites
from imprint.evaluation.identity import compute_descriptor, find_nearest
from imprint.evaluation.measures import REGIONS, Values, get_applicable, measure_composite

METRICS = (*(f"{region}_{unit}" for region in REGIONS for unit in ("psnr_db", "ssim")), "identity_top1", "shape_iou")
CHECKS = ("outside_changed", "failed")  # zero where all is well; see measures.check_composite


@dataclass(frozen=True)
class Row:
    """The numbers of one composite; `values` has every name of METRICS and CHECKS, None where it does not apply."""

    case: str
    level: MaskLevel
    method: str
    values: Values


def measure_all(cases: Sequence[Case], composites: Composites) -> list[Row]:
    """One row per level, method and case, in that order."""
    gallery = _describe_references(cases)
    rows: list[Row] = []
    with show_progress("evaluate: measures", len(cases) * len(composites) * len(METHODS)) as bar:
        for level, method in itertools.product(composites, METHODS):
            images = composites[level][method]
            found = find_nearest(_describe(cases, images), gallery)
            for number, (case, image) in enumerate(zip(cases, images, strict=True)):
                hit = {"identity_top1": float(found[number] == number)}
                rows.append(Row(case.name, level, method, measure_composite(image, case, level) | hit))
                bar.advance()
    return rows


def summarise_identity(cases: Sequence[Case]) -> dict[str, float]:
    """What retrieval gives at best, with the true pictures, and by chance."""
    found = find_nearest(_describe(cases, [case.truth for case in cases]), _describe_references(cases))
    hits = sum(int(index == number) for number, index in enumerate(found))
    return {"ceiling_top1": hits / len(cases), "chance_top1": 1 / len(cases)}


def summarise_rows(rows: Sequence[Row], section: Evaluate) -> dict[str, Any]:
    """`levels`: level => method => metric => mean (null where no case applies), and `intervals`, of the same shape: the
    95 % bootstrap interval as a list, which `dvc metrics show` leaves out. `checks`: their means over
    all of the model's composites."""
    means: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for level in section.levels:
        for method in METHODS:
            chosen = [row.values for row in rows if (row.level, row.method) == (level, method)]
            cells = {name: _summarise_cell(chosen, name, section) for name in METRICS}
            means.setdefault(level, {})[method] = {name: mean for name, (mean, _) in cells.items()}
            intervals.setdefault(level, {})[method] = {name: interval for name, (_, interval) in cells.items()}
    return {"levels": means, "intervals": intervals, "checks": _summarise_checks(rows)}


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers => `a.b.c` names; texts, lists and nulls are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _describe_references(cases: Sequence[Case]) -> list[np.ndarray]:
    return [compute_descriptor(case.reference[..., :3], case.reference[..., 3]) for case in cases]


def _describe(cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [compute_descriptor(image, case.object_mask) for case, image in zip(cases, images, strict=True)]


def _summarise_checks(rows: Sequence[Row]) -> dict[str, float]:
    ours = [row.values for row in rows if row.method == "ours"]
    return {name: float(get_applicable(ours, name).mean()) for name in CHECKS}


def _summarise_cell(rows: Sequence[Values], name: str, section: Evaluate) -> tuple[float | None, list[float] | None]:
    values = get_applicable(rows, name)
    if values.size == 0:
        return None, None
    low, high = compute_interval(values, samples=section.bootstrap_samples, seed=section.seed)
    return round(float(values.mean()), 4), [round(low, 4), round(high, 4)]
