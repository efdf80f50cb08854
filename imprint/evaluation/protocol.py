"""The protocol of an evaluation: everything that its numbers depend on besides the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imprint.core.errors import InputError
from imprint.core.files import compute_digest
from imprint.core.params import Evaluate
from imprint.evaluation.identity import FEATURE
from imprint.evaluation.measures import METRICS_VERSION

NAME = f"imprint-cases-{METRICS_VERSION}"


def build_protocol(section: Evaluate, cases_digest: str, num_cases: int) -> dict[str, Any]:
    """Name, hash and what a reader wants to see. The hash covers cases, holes, definitions, sampling, seed."""
    names = ("strength", "steps", "guidance", "draws", "from_noise_cases")
    sampling = {name: getattr(section, name) for name in names}
    covered = {
        "name": NAME,
        "cases": cases_digest,
        "levels": sorted(section.levels),
        "view_changes": section.view_changes,
        "views_per_case": section.views_per_case,
        "feature": FEATURE,
        **sampling,
        "seed": section.seed,
    }
    shown = {"num_cases": num_cases, "views_per_case": section.views_per_case, **sampling}
    return {"name": NAME, "hash": hash_settings(covered), **shown}


def hash_settings(settings: dict[str, Any]) -> str:
    """12 hex digits that differ when any setting differs."""
    return compute_digest(json.dumps(settings, sort_keys=True))[:12]


def load_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics file. `InputError` if it is missing or carries no protocol."""
    try:
        metrics = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run `dvc repro evaluate` first") from None
    except json.JSONDecodeError:
        raise InputError(f"{path} is no valid JSON; run `dvc repro evaluate` again") from None
    if not isinstance(metrics, dict) or "hash" not in metrics.get("protocol", {}):
        raise InputError(f"{path} carries no protocol; run `dvc repro evaluate` again")
    return metrics


def require_same_protocol(first: dict[str, Any], second: dict[str, Any]) -> None:
    """`InputError` unless the numbers of both may stand side by side."""
    names = [f"{metrics['protocol']['name']}/{metrics['protocol']['hash']}" for metrics in (first, second)]
    if names[0] != names[1]:
        raise InputError(f"numbers of different protocols ({names[0]}, {names[1]}) do not compare; evaluate both again")
