"""A compositor on the cases with ground truth: pictures, rows and numbers, for stage `evaluate` and any version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.params import Evaluate
from imprint.evaluation.cases import CaseSet
from imprint.evaluation.composites import Composites, Making, make_composites
from imprint.evaluation.protocol import build_protocol
from imprint.evaluation.summary import Groups, Row, measure_all, summarise_identity, summarise_rows
from imprint.evaluation.trials import Trial, choose_trials

if TYPE_CHECKING:
    from imprint.inference.composer import Compositor


@dataclass(frozen=True)
class Shown:
    """What was composited, and the pictures of it."""

    trials: Sequence[Trial]
    composites: Composites


def composite_cases(compositor: Compositor, case_set: CaseSet, section: Evaluate, *, work_dir: Path) -> Shown:
    """All trials that the params ask for. Run again after a stop, it reuses finished batches."""
    trials = choose_trials(case_set.cases, section)
    names = ("steps", "guidance", "draws", "strength", "from_noise_cases", "batch_size")
    making = Making(**{name: getattr(section, name) for name in names})
    return Shown(trials, make_composites(compositor, trials, making, work_dir=work_dir))


def measure_cases(
    shown: Shown, case_set: CaseSet, section: Evaluate, *, held_out: dict[str, Any], model: str
) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and the numbers of `metrics/evaluation.json`; `model`: 12 digits of the weights' digest."""
    rows = measure_all(case_set.cases, shown.trials, shown.composites)
    names = ("view_changes", "levels", "bootstrap_samples", "seed")
    groups = Groups(**{name: getattr(section, name) for name in names})
    return rows, {
        "protocol": build_protocol(section, case_set.digest, len(case_set.cases)),
        "identity": summarise_identity(case_set.cases, section.view_changes),
        "held_out": held_out,
        "model": model,
        **summarise_rows(rows, groups),
    }
