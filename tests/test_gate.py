"""The gate's decisions, as a table; and that noise does not promote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flows.gate import Candidate, GateDecision, GateRules, Measurement, decide, load_rules
from flows.gate_report import place_bar, write_gate_report
from imprint.core.errors import InputError
from imprint.evaluation.summary import CHECKS, METRICS
from tests.source_tree import ROOT

CASES = [(f"case_{number:02d}", level) for number in range(40) for level in ("exact", "box")]
NOISE = {name: np.random.default_rng(seed).normal(0.0, 1.0, len(CASES)) for seed, name in enumerate(("psnr", "iou"))}
RULES = GateRules.model_validate(
    {
        "min_cases": 20,
        "confidence": 0.95,
        "bootstrap_samples": 2000,
        "seed": 0,
        "metrics": {
            "psnr": {"greater_is_better": True, "min_absolute_change": 0.1, "min_relative_change": 0.0},
            "iou": {"greater_is_better": True, "min_absolute_change": 0.0, "min_relative_change": 0.01},
            "error": {"greater_is_better": False, "min_absolute_change": 0.0, "min_relative_change": 0.0},
        },
        "limits": {"outside_changed": {"max": 0.0}, "failed": {"max": 0.05}, "psnr": {"min": 10.0}},
    }
)


def measure(protocol: str = "cases/1", num_cells: int = len(CASES), **changes: float | np.ndarray) -> Measurement:
    """Values of a champion with `changes` added, per metric one number or one per cell."""
    base = {
        "psnr": 20.0 + NOISE["psnr"],
        "iou": 0.8 + 0.05 * NOISE["iou"],
        "error": np.full(len(CASES), 0.3),
        "outside_changed": np.zeros(len(CASES)),
        "failed": np.zeros(len(CASES)),
    }
    moved = {name: values + changes.get(name, 0.0) for name, values in base.items()}
    return Measurement(
        protocol, {name: dict(zip(CASES[:num_cells], values.tolist(), strict=False)) for name, values in moved.items()}
    )


def without(measurement: Measurement, name: str) -> Measurement:
    return replace(measurement, values={key: cells for key, cells in measurement.values.items() if key != name})


def without_cells(measurement: Measurement, name: str) -> Measurement:
    return replace(measurement, values={**measurement.values, name: {}})


def with_cell(measurement: Measurement, name: str, value: float) -> Measurement:
    cells: Mapping = {**measurement.values[name], CASES[3]: value}
    return replace(measurement, values={**measurement.values, name: cells})


def run_gate(challenger: Measurement | None, champion: Measurement | None, **fields: str) -> GateDecision:
    old = Candidate("1", "aa", champion, problem="" if champion else "version 1 was deleted")
    new = Candidate("2", "bb", challenger, problem="" if challenger else "its evaluation failed")
    return decide(old, replace(new, **fields), RULES)


# Alternating changes: their mean is small, what they would be with other cases is not.
SCATTER = np.where(np.arange(len(CASES)) // 2 % 2 == 0, 2.0, -1.6)

TABLE = {
    "equal": (measure(), "no-gain", "nothing is better"),
    "better": (measure(psnr=0.5), "better", "better in psnr, worse in nothing"),
    "better where smaller is better": (measure(error=-0.1), "better", "better in error"),
    "worse": (measure(psnr=-0.5), "worse", "worse in psnr"),
    "worse where smaller is better": (measure(error=0.1), "worse", "worse in error"),
    "one better and one worse": (measure(psnr=0.5, iou=-0.1), "worse", "worse in iou, though better in psnr"),
    "within noise": (measure(psnr=SCATTER), "no-gain", "more than chance"),
    "worse within noise": (measure(psnr=-SCATTER), "no-gain", "more than chance"),
    "sure but too small, absolute": (measure(psnr=0.05), "no-gain", "minimal change"),
    "sure but too small, relative": (measure(iou=0.004), "no-gain", "minimal change"),
    "a loss too small to matter": (measure(psnr=0.5, iou=-0.004), "better", "better in psnr"),
    "missing metric": (without(measure(error=-0.1), "iou"), "missing", "no usable values of iou"),
    "a metric that applies to nothing here": (without_cells(measure(psnr=0.5), "iou"), "better", "better in psnr"),
    "missing case": (measure(psnr=0.5, num_cells=60), "missing", "no usable values"),
    "NaN": (with_cell(measure(psnr=0.5), "iou", float("nan")), "missing", "no usable values of iou"),
    "infinite": (with_cell(measure(iou=0.5), "error", float("-inf")), "missing", "no usable values of error"),
    "the outside changed": (with_cell(measure(psnr=0.5), "outside_changed", 1e-6), "limit", "outside_changed"),
    "too many failures": (measure(psnr=0.5, failed=0.06), "limit", "limit of failed"),
    "below a floor": (measure(psnr=-11.0, iou=0.1), "limit", "limit of psnr"),
    "limit without a value": (without(measure(psnr=0.5), "failed"), "limit", "limit of failed"),
    "NaN in a limit": (with_cell(measure(psnr=0.5), "failed", float("nan")), "limit", "limit of failed"),
    "other protocol": (measure("cases/2", psnr=5.0), "protocol", "cases/1 and cases/2, which do not compare"),
    "evaluation failed": (None, "not-measured", "its evaluation failed"),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_decision_is(case: str) -> None:
    challenger, reason, words = TABLE[case]
    decision = run_gate(challenger, measure())
    assert (decision.reason, decision.promote) == (reason, reason == "better")
    assert words in decision.explanation
    assert (decision.champion_version, decision.challenger_version) == ("1", "2")
    json.dumps(decision.to_json(), allow_nan=False)


def test_without_a_champion_the_limits_decide() -> None:
    """No champion yet is not the same as a champion that was deleted."""
    first = decide(None, Candidate("1", "aa", measure()), RULES)
    assert (first.promote, first.reason, first.metrics) == (True, "first", ())
    broken = decide(None, Candidate("1", "aa", measure(failed=0.5)), RULES)
    assert (broken.promote, broken.reason) == (False, "limit")
    unmeasured = decide(None, Candidate("1", "aa", None, problem="none"), RULES)
    assert (unmeasured.promote, unmeasured.reason) == (False, "not-measured")
    deleted = run_gate(measure(psnr=5.0), None)
    assert (deleted.promote, deleted.reason) == (False, "champion-not-measured")
    assert "version 1 was deleted" in deleted.explanation


def test_what_was_rolled_back_or_is_champion_is_not_promoted_again() -> None:
    back = run_gate(measure(psnr=5.0), measure(), rolled_back="blurs logos")
    assert (back.promote, back.reason) == (False, "rolled-back")
    assert "blurs logos" in back.explanation
    same = run_gate(measure(psnr=5.0), measure(), digest="aa")
    assert (same.promote, same.reason) == (False, "same-content")


def test_few_cases_decide_nothing() -> None:
    few = run_gate(measure(psnr=0.5, num_cells=38), measure(num_cells=38))
    assert (few.promote, few.reason) == (False, "few-cases")
    enough = run_gate(measure(psnr=0.5, num_cells=40), measure(num_cells=40))
    assert enough.promote


def test_the_pairing_sees_what_the_scatter_of_the_cases_would_hide() -> None:
    """A gain of a tenth of the cases' own scatter, equal in all of them, is sure; shuffled over the cases it is not."""
    champion = measure()
    assert run_gate(measure(psnr=0.15), champion).promote
    shuffled = np.random.default_rng(1).permutation(list(champion.values["psnr"].values()))
    elsewhere = {**champion.values, "psnr": dict(zip(CASES, (shuffled + 0.15).tolist(), strict=True))}
    assert run_gate(replace(champion, values=elsewhere), champion).reason == "no-gain"


def test_cells_of_one_case_count_as_one_case() -> None:
    """Both levels of a case share its change: the interval is as wide as with one level."""
    rng = np.random.default_rng(0)
    per_case = rng.normal(0.0, 1.0, len(CASES) // 2)
    both = run_gate(measure(psnr=per_case.repeat(2)), measure()).metrics[0]
    assert both.low is not None
    assert both.high is not None
    assert (both.high - both.low) / 2 == pytest.approx(1.96 * per_case.std() / np.sqrt(per_case.size), rel=0.1)
    assert both.num_cases == per_case.size


def test_noise_promotes_at_most_as_often_as_the_rules_allow() -> None:
    """1000 challengers that are no better: independent noise in each of three metrics."""
    rng = np.random.default_rng(0)
    rules = RULES.model_copy(
        update={
            "bootstrap_samples": 400,
            "metrics": {
                name: rule.model_copy(update={"min_absolute_change": 0.0, "min_relative_change": 0.0})
                for name, rule in RULES.metrics.items()
            },
        }
    )
    names, champion = ("psnr", "iou", "error"), Candidate("1", "aa", measure())
    tries = [
        Candidate("2", "bb", measure(**{name: rng.normal(0.0, 0.02, len(CASES)) for name in names}))
        for _ in range(1000)
    ]
    decisions = [decide(champion, challenger, rules) for challenger in tries]
    better = [any(metric.verdict == "better" for metric in decision.metrics) for decision in decisions]
    worse = [any(metric.verdict == "worse" for metric in decision.metrics) for decision in decisions]
    assert 0.03 < np.mean(better) < 0.07
    assert 0.05 < np.mean(worse) < 0.10  # each metric stands alone: three times a fortieth


def test_the_same_inputs_give_the_same_decision() -> None:
    assert run_gate(measure(psnr=SCATTER), measure()) == run_gate(measure(psnr=SCATTER), measure())


# --- the rules' file ------------------------------------------------------------------------------------------------


def test_the_repositorys_rules_name_metrics_that_the_evaluation_has() -> None:
    rules = load_rules(ROOT)
    assert set(rules.metrics) <= set(METRICS)
    assert set(CHECKS) == set(rules.limits)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("min_cases: 20", "min_case: 20", r"gate\.yaml: min_case: unknown key"),
        ("confidence: 0.95", "confidence: 95", r"gate\.yaml: confidence"),
        (
            "greater_is_better: true",
            "greater_is_better: maybe",
            r"gate\.yaml: metrics\.identity_top1\.greater_is_better",
        ),
        ("metrics: ", "metrics: [", r"no valid YAML"),
    ],
)
def test_a_wrong_rule_is_named(tmp_path: Path, old: str, new: str, fault: str) -> None:
    text = (ROOT / "gate.yaml").read_text()
    assert old in text
    (tmp_path / "gate.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=fault):
        load_rules(tmp_path)


def test_missing_rules_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gate\.yaml cannot be read"):
        load_rules(tmp_path)


# --- the page -------------------------------------------------------------------------------------------------------


class _Text(HTMLParser):
    """Collects a page's words and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("case", ["better", "one better and one worse", "NaN", "other protocol", "evaluation failed"])
def test_the_page_says_what_the_file_says(tmp_path: Path, case: str) -> None:
    decision = run_gate(TABLE[case][0], measure())
    write_gate_report(tmp_path, decision, {"decided": "2026-01-01", "rules": RULES.model_dump(mode="json")})
    told = json.loads((tmp_path / "reports" / "gate" / "decision.json").read_text())
    assert (told["reason"], told["challenger_digest"]) == (decision.reason, "bb")
    page = _Text()
    page.feed((tmp_path / "reports" / "gate" / "index.html").read_text())
    assert page.open == []
    assert decision.explanation in page.words
    for metric in decision.metrics:
        assert metric.name in page.words
        assert metric.change is None or f"{metric.change:+.4f}" in page.words


def test_bars_keep_the_order_of_what_they_show() -> None:
    for metric in run_gate(measure(psnr=SCATTER, iou=-0.1), measure()).metrics:
        bar = place_bar(metric)
        assert bar is not None
        assert 0 <= bar["low"] <= bar["change"] <= bar["high"] <= 100
        assert bar["least"] + bar["most"] == pytest.approx(100, abs=0.1)
