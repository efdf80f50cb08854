"""The gate: may this challenger take the champion's place? Pure: numbers in, a decision with its reasons out.

Both were measured on the same cases under the same protocol, so their values are compared case by case. How far the
mean difference would move with other cases is a paired bootstrap. "Better" is claimed if any metric is, so each of the
m metrics must clear a bound at 1 - (1 - confidence) / m (Bonferroni); "not worse" is claimed of all of them, so each
stands alone. Names follow MLflow's `MetricThreshold`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field
from scipy.special import ndtr, stdtrit

from imprint.core.errors import InputError
from imprint.core.files import compute_digest
from imprint.core.outside import load_yaml
from imprint.core.params import Count, Section, parse_section
from imprint.evaluation.bootstrap import sample_means

RULES_FILE = "gate.yaml"
NonNegative = Annotated[float, Field(ge=0.0)]
Cell = tuple[str, str]  # case, and how it was tried: view change and mask level
Verdict = Literal["better", "worse", "equal", "noise", "small", "absent", "missing"]
Reason = Literal[
    "first",  # no champion yet, and the challenger keeps the limits
    "better",
    "no-gain",
    "worse",
    "limit",
    "missing",  # a metric that the rules name has no usable value
    "few-cases",
    "protocol",
    "not-measured",
    "champion-not-measured",
    "same-content",
    "rolled-back",
]


class MetricRule(Section):
    """What counts as a change of one metric: at least both of these, and more than chance."""

    greater_is_better: bool
    min_absolute_change: NonNegative
    min_relative_change: NonNegative  # of the champion's mean


class LimitRule(Section):
    """Bounds of the challenger's own mean, inclusive."""

    min: float | None = None
    max: float | None = None


class GateRules(Section):
    """`gate.yaml`."""

    min_cases: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    seed: int
    metrics: Annotated[dict[str, MetricRule], Field(min_length=1)]
    limits: dict[str, LimitRule]

    def compute_digest(self) -> str:
        """12 hex digits that differ when any rule does."""
        return compute_digest(json.dumps(self.model_dump(mode="json"), sort_keys=True))[:12]


@dataclass(frozen=True)
class Measurement:
    """One version under one protocol: metric => cell => value. Cells that a metric does not apply to are absent; of a
    metric that applies to none, as the outline where no opacity is known, all are."""

    protocol: str
    values: Mapping[str, Mapping[Cell, float]]


@dataclass(frozen=True)
class Candidate:
    """One side of the comparison. `problem` says why there is no measurement; `rolled_back`: why it was taken back."""

    version: str
    digest: str
    measurement: Measurement | None
    problem: str = ""
    rolled_back: str = ""


@dataclass(frozen=True)
class MetricVerdict:
    """One metric: the two means, the change (challenger minus champion), its two-sided interval at the rules'
    confidence, and `floor`: by how much it surely improved (below zero: it may not have)."""

    name: str
    verdict: Verdict
    champion: float | None = None
    challenger: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    min_change: float | None = None
    num_cases: int = 0


@dataclass(frozen=True)
class LimitVerdict:
    """One hard limit. `value` is None where the challenger has none, which breaks it."""

    name: str
    value: float | None
    min: float | None
    max: float | None
    kept: bool


@dataclass(frozen=True)
class GateDecision:
    """`promote`: what the rules say, for the `reason`; `explanation` is a line for people. No alias has moved."""

    promote: bool
    reason: Reason
    explanation: str
    challenger_version: str
    challenger_digest: str
    champion_version: str | None
    champion_digest: str | None
    protocol: str | None
    rules: str
    metrics: tuple[MetricVerdict, ...] = ()
    limits: tuple[LimitVerdict, ...] = ()

    def describe(self) -> str:
        """One line for people."""
        champion = f"champion {self.champion_version}" if self.champion_version else "no champion"
        verb = "promote" if self.promote else "keep"
        return f"{verb}: version {self.challenger_version} against {champion}: {self.explanation}"

    def compute_digest(self) -> str:
        """16 hex digits that name this very decision: another champion, other rules or values give others."""
        return compute_digest(json.dumps(self.to_json(), sort_keys=True))[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as in `reports/gate/decision.json`."""
        return asdict(self)


def load_rules(root: Path = Path(".")) -> GateRules:
    """Read and check `gate.yaml`; `InputError` names the wrong key."""
    path = root / RULES_FILE
    try:
        values = load_yaml(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); restore it with `git checkout {path}`") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    return parse_section(GateRules, values, str(path))


def decide(champion: Candidate | None, challenger: Candidate, rules: GateRules) -> GateDecision:
    """Compare. `champion`: None if there has never been one. Same inputs, same decision."""
    limits: tuple[LimitVerdict, ...] = ()
    metrics: tuple[MetricVerdict, ...] = ()
    found = _find_obstacle(champion, challenger)
    if found is None:
        assert challenger.measurement is not None
        limits = tuple(_check_limit(name, rule, challenger.measurement) for name, rule in rules.limits.items())
        if champion is not None:
            metrics = _compare_all(champion, challenger, rules)
        found = _judge(limits, metrics, rules)
    reason, explanation = found
    return GateDecision(
        promote=reason in ("first", "better"),
        reason=reason,
        explanation=explanation,
        challenger_version=challenger.version,
        challenger_digest=challenger.digest,
        champion_version=champion.version if champion else None,
        champion_digest=champion.digest if champion else None,
        protocol=challenger.measurement.protocol if challenger.measurement else None,
        rules=rules.compute_digest(),
        metrics=metrics,
        limits=limits,
    )


def _find_obstacle(champion: Candidate | None, challenger: Candidate) -> tuple[Reason, str] | None:
    """Why the two cannot be compared at all."""
    if champion is not None and champion.digest == challenger.digest:
        return "same-content", "the challenger's files are the champion's"
    if challenger.rolled_back:
        return "rolled-back", f"it was champion and was rolled back ({challenger.rolled_back}); promote it by hand"
    if challenger.measurement is None:
        return "not-measured", f"the challenger has no measurement: {challenger.problem}"
    if champion is None:
        return None
    if champion.measurement is None:
        return "champion-not-measured", f"the champion has no measurement: {champion.problem}"
    if champion.measurement.protocol != challenger.measurement.protocol:
        return "protocol", (
            f"measured under {champion.measurement.protocol} and {challenger.measurement.protocol}, which do not "
            "compare; `imprint gate --remeasure` measures the champion again"
        )
    return None


def _judge(limits: Sequence[LimitVerdict], metrics: Sequence[MetricVerdict], rules: GateRules) -> tuple[Reason, str]:
    """The first thing that forbids a promotion, or the reason for it."""
    named: dict[str, list[str]] = {}
    for verdict in metrics:
        named.setdefault(verdict.verdict, []).append(verdict.name)
    broken = [limit.name for limit in limits if not limit.kept]
    if broken:
        return "limit", f"breaks the limit of {', '.join(broken)}"
    if "missing" in named:
        return "missing", f"no usable values of {', '.join(named['missing'])}"
    if not metrics:
        return "first", "there is no champion yet, and it keeps all limits"
    num_cases = min((verdict.num_cases for verdict in metrics if verdict.verdict != "absent"), default=0)
    if num_cases < rules.min_cases:
        return "few-cases", f"{num_cases} cases; gate.yaml asks for {rules.min_cases}"
    better = ", ".join(named.get("better", []))
    if "worse" in named:
        return "worse", f"worse in {', '.join(named['worse'])}" + (f", though better in {better}" if better else "")
    if not better:
        return "no-gain", "nothing is better by more than chance and the minimal change"
    return "better", f"better in {better}, worse in nothing"


def _check_limit(name: str, rule: LimitRule, measurement: Measurement) -> LimitVerdict:
    values = list(measurement.values.get(name, {}).values())
    mean = float(np.mean(values)) if values else math.nan
    value = mean if math.isfinite(mean) else None
    kept = value is not None and (rule.min is None or value >= rule.min) and (rule.max is None or value <= rule.max)
    return LimitVerdict(name, value, rule.min, rule.max, kept)


def _compare_all(champion: Candidate, challenger: Candidate, rules: GateRules) -> tuple[MetricVerdict, ...]:
    assert champion.measurement is not None
    assert challenger.measurement is not None
    first, second = champion.measurement.values, challenger.measurement.values
    return tuple(_compare(name, first.get(name), second.get(name), rules=rules) for name in rules.metrics)


def _compare(
    name: str, champion: Mapping[Cell, float] | None, challenger: Mapping[Cell, float] | None, *, rules: GateRules
) -> MetricVerdict:
    """`absent` if it is measured but applies to nothing of one side: that says nothing of the other. `missing` unless
    else both have a finite value in exactly the same cells."""
    if champion is None or challenger is None:
        return MetricVerdict(name, "missing")
    if not champion or not challenger:
        return MetricVerdict(name, "absent")
    if set(champion) != set(challenger):
        return MetricVerdict(name, "missing")
    cells = sorted(champion)
    before = np.array([champion[cell] for cell in cells])
    after = np.array([challenger[cell] for cell in cells])
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return MetricVerdict(name, "missing")
    rule = rules.metrics[name]
    cases = [case for case, _ in cells]
    means = sample_means(after - before, cases, samples=rules.bootstrap_samples, seed=rules.seed)
    num_cases, share = len(set(cases)), 1.0 - rules.confidence
    low, high = _bound(means, share / 2, num_cases), -_bound(-means, share / 2, num_cases)
    floor = _bound(means if rule.greater_is_better else -means, share / len(rules.metrics), num_cases)
    change = float(after.mean() - before.mean())
    min_change = max(rule.min_absolute_change, rule.min_relative_change * abs(float(before.mean())))
    gain, ceiling = (change, high) if rule.greater_is_better else (-change, -low)
    return MetricVerdict(
        name=name,
        verdict=_name_verdict(gain, floor=floor, ceiling=ceiling, min_change=min_change),
        champion=float(before.mean()),
        challenger=float(after.mean()),
        change=change,
        low=low,
        high=high,
        floor=floor,
        min_change=min_change,
        num_cases=num_cases,
    )


def _bound(means: np.ndarray, share: float, num_cases: int) -> float:
    """Lower bound that the true mean undercuts with probability `share`: a percentile of the bootstrap, taken further
    out because it is too narrow for few cases (Hesterberg 2014, "expanded percentile")."""
    if num_cases > 1:
        share = float(ndtr(-math.sqrt(num_cases / (num_cases - 1)) * stdtrit(num_cases - 1, 1 - share)))
    return float(np.quantile(means, share))


def _name_verdict(gain: float, *, floor: float, ceiling: float, min_change: float) -> Verdict:
    """gain: upwards is better; floor and ceiling: between which it surely lies."""
    if gain == floor == ceiling == 0.0:
        return "equal"
    if floor <= 0.0 <= ceiling:
        return "noise"
    if abs(gain) < min_change:
        return "small"
    return "better" if gain > 0 else "worse"
