"""From pictures to rows, from rows to the numbers of `metrics/evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.progress import show_progress
from imprint.core.view_changes import NEAR, ViewChange
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.cases import Case
from imprint.evaluation.composites import METHODS, Composites, Made
from imprint.evaluation.identity import compute_descriptor, find_nearest
from imprint.evaluation.measures import REGIONS, Values, get_applicable, measure_composite
from imprint.evaluation.trials import Trial

METRICS = (
    *(f"{region}_{unit}" for region in REGIONS for unit in ("psnr_db", "ssim")),
    "sharpness",
    "log_sharpness",
    "gradient_agreement",
    "outline_iou",
    "identity_top1",
    "copy_distance",
    "near_psnr_db",  # object_psnr_db of view changes up to 45 degrees alone; the gate reads it
)
CHECKS = ("outside_changed", "failed")  # zero where all is well; see measures.check_composite
Cell = tuple[float | None, list[float] | None]  # mean and its interval


@dataclass(frozen=True, kw_only=True)
class Groups:
    """By what the rows are summarised, and how their intervals are drawn."""

    view_changes: Sequence[ViewChange]
    levels: Sequence[MaskLevel]
    bootstrap_samples: int
    seed: int


@dataclass(frozen=True)
class Row:
    """The numbers of one composite; `values` has every name of METRICS and CHECKS, None where it does not apply."""

    case: str
    view_change: ViewChange
    level: MaskLevel
    method: str
    values: Values


def measure_all(cases: Sequence[Case], trials: Sequence[Trial], composites: Composites) -> list[Row]:
    """One row per method and trial that it was tried on, in that order. An object is looked for among the references of
    all cases that differ from their truths as much as its own does."""
    galleries = describe_galleries(cases, list(dict.fromkeys(trial.view_change for trial in trials)))
    pasted = [made for made in composites["paste"] if made is not None]
    rows: list[Row] = []
    with show_progress("evaluate: measures", len(trials) * len(METHODS)) as bar:
        for method in METHODS:
            for trial, made, copy in zip(trials, composites[method], pasted, strict=True):
                if made is not None:
                    hit = {"identity_top1": _find_hit(made, trial, galleries[trial.view_change])}
                    values = measure_composite(made, trial, copy) | hit
                    rows.append(Row(trial.case.name, trial.view_change, trial.level, method, values))
                bar.advance()
    return rows


def describe_galleries(cases: Sequence[Case], view_changes: Sequence[ViewChange]) -> dict[ViewChange, list[np.ndarray]]:
    """Descriptors of the references of all cases that have one of the view change; `Trial.place` counts in them."""
    return {
        name: [_describe_reference(case.references[name]) for case in cases if name in case.references]
        for name in view_changes
    }


def summarise_identity(cases: Sequence[Case], view_changes: Sequence[ViewChange]) -> dict[str, Any]:
    """What retrieval gives with the true pictures, by view change and in all, and by chance."""
    ceilings, sizes = {}, []
    for name, gallery in describe_galleries(cases, view_changes).items():
        chosen = [case for case in cases if name in case.references]
        truths = [compute_descriptor(case.truth, case.object_mask) for case in chosen]
        ceilings[name] = float((find_nearest(truths, gallery) == np.arange(len(gallery))).mean())
        sizes.append(len(gallery))
    near = [ceilings[name] for name in NEAR if name in ceilings]
    return {
        "chance_top1": round(float(np.mean([1 / size for size in sizes])), 4),
        "ceiling_top1": round(float(np.mean(list(ceilings.values()))), 4),
        "near_ceiling_top1": round(float(np.mean(near)), 4) if near else None,
        "ceilings_top1": {name: round(ceiling, 4) for name, ceiling in ceilings.items()},
    }


def summarise_rows(rows: Sequence[Row], groups: Groups) -> dict[str, Any]:
    """`view_changes`: stratum => method => metric => mean over all levels (null where no case applies); `levels`: level
    => the same over view changes up to 45 degrees, where a method can know what is to be seen; `intervals`: the same
    two trees with the 95 % bootstrap interval over cases as a list, which `dvc metrics show` leaves out; `cells`:
    stratum => level => method => metric => [mean, low, high]. `checks`: means over all of the model's composites."""
    near = [row for row in rows if row.view_change in NEAR]
    trees = {
        "view_changes": {
            name: _summarise([row for row in rows if row.view_change == name], groups) for name in groups.view_changes
        },
        "levels": {name: _summarise([row for row in near if row.level == name], groups) for name in groups.levels},
    }
    cells = {
        view_change: {
            level: _summarise([r for r in rows if (r.view_change, r.level) == (view_change, level)], groups)
            for level in groups.levels
        }
        for view_change in groups.view_changes
    }
    return {
        **{name: _map_cells(tree, lambda cell: cell[0]) for name, tree in trees.items()},
        "intervals": {name: _map_cells(tree, lambda cell: cell[1]) for name, tree in trees.items()},
        "cells": _map_cells(cells, lambda cell: None if cell[1] is None else [cell[0], *cell[1]]),
        "checks": _summarise_checks(rows),
    }


def flatten_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers => `a.b.c` names; texts, lists and nulls are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten_metrics(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{name}"] = float(value)
    return flat


def _describe_reference(reference: np.ndarray) -> np.ndarray:
    return compute_descriptor(reference[..., :3], reference[..., 3])


def _find_hit(made: Made, trial: Trial, gallery: Sequence[np.ndarray]) -> float:
    asked = compute_descriptor(made.picture, trial.case.object_mask)
    return float(find_nearest([asked], gallery)[0] == trial.place)


def _summarise(rows: Sequence[Row], groups: Groups) -> dict[str, dict[str, Cell]]:
    """Method => metric => cell; a method that was not tried has none."""
    methods = [method for method in METHODS if any(row.method == method for row in rows)]
    return {
        method: {name: _summarise_cell([row for row in rows if row.method == method], name, groups) for name in METRICS}
        for method in methods
    }


def _summarise_cell(rows: Sequence[Row], name: str, groups: Groups) -> Cell:
    """All composites of a case are drawn together: they are of one object in one scene."""
    chosen = [row for row in rows if row.values[name] is not None]
    if not chosen:
        return None, None
    values = get_applicable([row.values for row in chosen], name)
    cases = [row.case for row in chosen]
    low, high = compute_interval(values, cases, samples=groups.bootstrap_samples, seed=groups.seed)
    return round(float(values.mean()), 4), [round(low, 4), round(high, 4)]


def _map_cells(tree: Any, get: Any) -> Any:
    return {name: _map_cells(part, get) for name, part in tree.items()} if isinstance(tree, dict) else get(tree)


def _summarise_checks(rows: Sequence[Row]) -> dict[str, float]:
    ours = [row.values for row in rows if row.method == "ours"]
    return {name: float(get_applicable(ours, name).mean()) for name in CHECKS}
