"""The gate's decision as a file for machines and a page for people, in `reports/gate/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.gate import GateDecision, MetricVerdict
from imprint.core.files import write_bytes_atomic, write_json_atomic

REPORT = Path("reports/gate")
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "equal": "equal",
    "noise": "within chance",
    "small": "too small to matter",
    "missing": "no usable values",
    "absent": "does not apply",
}
_TEMPLATE = Path(__file__).with_name("gate_report.html.j2")


def write_gate_report(root: Path, decision: GateDecision, told: Mapping[str, Any]) -> None:
    """`told`: when it was decided (`decided`) and the rules in full (`rules`)."""
    write_json_atomic(root / REPORT / "decision.json", {**decision.to_json(), "decided": told["decided"]})
    write_bytes_atomic(root / REPORT / "index.html", render_gate_page(decision, told).encode())


def render_gate_page(decision: GateDecision, told: Mapping[str, Any]) -> str:
    """The page as HTML; it stands alone."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text())
    bars = {metric.name: place_bar(metric) for metric in decision.metrics}
    return template.render(decision=decision, verdicts=VERDICTS, bars=bars, **told)


def place_bar(metric: MetricVerdict) -> dict[str, float] | None:
    """Where interval, change and minimal change lie on a scale from 0 to 100 with zero change at 50; None without."""
    if metric.change is None or metric.low is None or metric.high is None or metric.min_change is None:
        return None
    reach = 1.08 * max(abs(metric.low), abs(metric.high), abs(metric.change), metric.min_change, 1e-9)
    places = {"low": metric.low, "high": metric.high, "change": metric.change}
    margins = {"least": -metric.min_change, "most": metric.min_change}
    return {name: round(50 + 50 * value / reach, 2) for name, value in {**places, **margins}.items()}
