"""What is composited and measured: a case with one of its references and one of its holes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.params import Evaluate
from imprint.core.view_changes import ViewChange
from imprint.evaluation.cases import Case


@dataclass(frozen=True)
class Trial:
    """`place`: of the case among all cases; `seed`: of the noise, the same for all references and holes of a case, so
    that what differs between them is not the draw."""

    case: Case
    place: int
    view_change: ViewChange
    level: MaskLevel
    seed: int

    @property
    def reference(self) -> np.ndarray:
        return self.case.references[self.view_change]

    @property
    def hole(self) -> np.ndarray:
        return self.case.holes[self.level]


def choose_trials(cases: Sequence[Case], section: Evaluate) -> list[Trial]:
    """All mask levels of each case with its strata of view change, ordered by stratum, level, case."""
    strata, count = section.view_changes, section.views_per_case
    return [
        Trial(case, place, view_change, level, section.seed + place)
        for number, view_change in enumerate(strata)
        for level in section.levels
        for place, case in enumerate(cases)
        if number in choose_places(place, len(strata), count)
    ]


def choose_places(case_place: int, num_strata: int, count: int) -> set[int]:
    """Which `count` of the strata a case is tried with: evenly apart, and the cases take turns, so that every stratum
    gets as many cases and (with two) every case a near and a far view."""
    count = min(count, num_strata)
    return {(case_place + step * num_strata // count) % num_strata for step in range(count)}
