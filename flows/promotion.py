"""From files to a champion: register a challenger, let the gate decide, promote, roll back. Needs no Prefect.

The compositor is what is promoted. The encoder that it was trained on, known by digest, moves with it, always: two
aliases `champion` never name models that do not belong together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.gate import Candidate, GateDecision, decide, load_rules
from flows.gate_report import write_gate_report
from flows.measurements import PROBLEM_TAG, PROTOCOL_TAG, attach_measurement, fetch_measurement
from flows.registry import (
    CHALLENGER,
    CHAMPION,
    COMPOSITOR,
    ENCODER,
    PAIR_TAG,
    PREVIOUS_TAG,
    Registration,
    find_alias,
    find_tagged,
    get_version,
    move_champion,
    register_pair,
    remembers_champion,
)
from imprint.core.errors import InputError
from imprint.core.params import load_params
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROLLED_BACK_TAG = "imprint.rolled_back"  # the reason; the gate does not promote such a version again
VERSIONS = Path("reports/versions")
GATE_TAG = "imprint.gate"


def register_challenger(root: Path = Path(".")) -> Registration:
    """Register both models in `models/` with the project's evaluation; the compositor's registration. New content gets
    the alias `challenger`; content that is registered already gets no second version."""
    return register_pair(root)[-1]


def run_gate(root: Path = Path("."), *, remeasure: bool = False) -> GateDecision:
    """Compare the version with the alias `challenger` with the champion. The decision becomes tags of the challenger
    and `reports/gate/`; no alias moves.

    remeasure: a champion that was measured under another protocol, or not at all, is measured first (minutes).
    """
    rules = load_rules(root)
    client, _ = open_store(root)
    name = COMPOSITOR.name
    challenger = _find_challenger(client, name)
    protocol = challenger.tags.get(PROTOCOL_TAG)
    champion = find_alias(client, name, CHAMPION)
    if remeasure and champion and protocol and champion != challenger.version:
        _measure_if_needed(client, champion, protocol, root)
    decision = decide(
        _build_champion(client, name, protocol, root), _build_candidate(client, challenger, protocol, root), rules
    )
    told = {"decided": datetime.now(UTC).isoformat(timespec="seconds"), "rules": rules.model_dump(mode="json")}
    if decision.reason != "same-content":
        for key, value in _list_tags(decision, told["decided"]).items():
            client.set_model_version_tag(name, decision.challenger_version, key, value)
    write_gate_report(root, decision, told)
    return decision


def promote(name: str, version: str, *, reason: str, root: Path = Path(".")) -> None:
    """Make a version of the compositor, and the encoder that it was trained on, champions. `InputError` if there is no
    such version or encoder, or no reason."""
    client, _ = open_store(root)
    pair = _find_pair(client, name, version)
    move_champion(client, pair, reason=_require_reason(reason))
    if ROLLED_BACK_TAG in get_version(client, name, version).tags:
        client.delete_model_version_tag(name, version, ROLLED_BACK_TAG)


def promote_as_decided(name: str, version: str, *, decision: str, reason: str, root: Path = Path(".")) -> str:
    """Make a version champion because the gate has said so, in the decision of this digest; why it is none now, empty
    if it is.

    Time has passed since: nothing moves if the version was rolled back, was judged anew or by other rules than those of
    `gate.yaml` now, or if the champion is another than the one that it was compared with.
    """
    client, _ = open_store(root)
    obstacle = _find_change(client, get_version(client, name, version), decision, root)
    if not obstacle:
        move_champion(client, _find_pair(client, name, version), reason=_require_reason(reason))
    return obstacle


def _find_change(client: MlflowClient, version: ModelVersion, decision: str, root: Path) -> str:
    """What has changed since a decision about a version; empty if nothing that matters."""
    tags, name = version.tags, version.name
    champion = find_alias(client, name, CHAMPION)
    if champion == str(version.version):
        return f"version {champion} is champion already"
    if ROLLED_BACK_TAG in tags:
        return f"version {version.version} was rolled back ({tags[ROLLED_BACK_TAG]}); promote it by hand"
    judged = {key: tags.get(f"{GATE_TAG}.{key}", "none") for key in ("decision", "outcome", "champion", "rules")}
    if (judged["decision"], judged["outcome"]) != (decision, "promote"):
        return f"version {version.version} was judged anew since, with the outcome {judged['outcome']}"
    if judged["champion"] != (champion or "none"):
        return f"it was compared with champion {judged['champion']}, and now that is {champion or 'none'}"
    digest = get_version(client, name, champion).tags.get(DIGEST_TAG, "") if champion else "none"
    if digest != tags.get(f"{GATE_TAG}.champion_digest"):
        return f"the champion {champion} has other content than when it was compared"
    if judged["rules"] != load_rules(root).compute_digest():
        return "gate.yaml has changed since; `imprint gate` decides anew"
    return ""


def rollback(name: str, *, reason: str, root: Path = Path(".")) -> str:
    """Make the version before the champion champion again, with its encoder; that version. Rolling back twice goes two
    back. `InputError` if there was none, or if it has been deleted."""
    client, _ = open_store(root)
    _require_compositor(name)
    champion = find_alias(client, name, CHAMPION)
    if champion is None:
        raise InputError(f"{name} has no champion; `imprint promote {name} VERSION --reason ...` makes one")
    previous = get_version(client, name, champion).tags.get(PREVIOUS_TAG, "none")
    if previous == "none":
        raise InputError(f"{name} version {champion} is the first champion; there is nothing to go back to")
    pair = _find_pair(client, name, previous)
    client.set_model_version_tag(name, champion, ROLLED_BACK_TAG, _require_reason(reason))
    move_champion(client, pair, reason=f"rollback from version {champion}: {reason}", back=True)
    return previous


def evaluate_version(name: str, version: str, root: Path = Path(".")) -> dict[str, Any]:
    """Measure a registered version on the project's test cases under its current protocol; the metrics. Fills
    `reports/versions/<name>-<version>/` and keeps the measurement with the version."""
    from imprint.evaluation.version import evaluate_model
    from imprint.inference.registered import download_registered

    _require_compositor(name)
    client, _ = open_store(root)
    found = get_version(client, name, version)
    out = root / VERSIONS / f"{name}-{version}"
    with tempfile.TemporaryDirectory() as folder:
        model = download_registered(f"models:/{name}/{version}", root, Path(folder))
        metrics = evaluate_model(model, load_params(root / "params.yaml").evaluate, out=out, root=root)
    attach_measurement(client, found, out / "evaluation.json", out / "cases.csv")
    return metrics


def _find_challenger(client: MlflowClient, name: str) -> ModelVersion:
    """The challenger; where there is none because the newest content is champion, the champion."""
    version = find_alias(client, name, CHALLENGER) or find_alias(client, name, CHAMPION)
    if version is None:
        raise InputError(f"{name} has no version to decide about; `imprint register` makes one")
    return get_version(client, name, version)


def _build_champion(client: MlflowClient, name: str, protocol: str | None, root: Path) -> Candidate | None:
    """None if there never was one. One that was deleted is a candidate without a measurement."""
    version = find_alias(client, name, CHAMPION)
    if version is not None:
        return _build_candidate(client, get_version(client, name, version), protocol, root)
    deleted = remembers_champion(client, name)
    if deleted is None:
        return None
    return Candidate(deleted, "", None, problem=f"version {deleted} lost its alias or was deleted; promote one by hand")


def _build_candidate(client: MlflowClient, version: ModelVersion, protocol: str | None, root: Path) -> Candidate:
    """With its measurement under `protocol` if there is one, else with its last one."""
    measurement = fetch_measurement(client, version, protocol=protocol, root=root) or fetch_measurement(
        client, version, root=root
    )
    problem = "" if measurement else version.tags.get(PROBLEM_TAG, "it was never evaluated")
    digest, rolled_back = version.tags.get(DIGEST_TAG, ""), version.tags.get(ROLLED_BACK_TAG, "")
    return Candidate(str(version.version), digest, measurement, problem=problem, rolled_back=rolled_back)


def _measure_if_needed(client: MlflowClient, version: str, protocol: str, root: Path) -> None:
    found = get_version(client, COMPOSITOR.name, version)
    if fetch_measurement(client, found, protocol=protocol, root=root) is None:
        evaluate_version(COMPOSITOR.name, version, root)


def _list_tags(decision: GateDecision, decided: str) -> dict[str, str]:
    """The decision as tags of the challenger."""
    tags = {
        "outcome": "promote" if decision.promote else "keep",
        "reason": decision.reason,
        "explanation": decision.explanation,
        "decided": decided,
        "decision": decision.compute_digest(),
        "rules": decision.rules,
        "protocol": decision.protocol or "none",
        "challenger_digest": decision.challenger_digest,
        "champion": decision.champion_version or "none",
        "champion_digest": decision.champion_digest or "none",
    }
    for metric in decision.metrics:
        numbers = "" if metric.change is None else f"{metric.change:+.4f} [{metric.low:+.4f}, {metric.high:+.4f}] "
        tags[f"metric.{metric.name}"] = f"{numbers}{metric.verdict}"
    for limit in decision.limits:
        tags[f"limit.{limit.name}"] = f"{limit.value} {'kept' if limit.kept else 'broken'}"
    return {f"{GATE_TAG}.{key}": value for key, value in tags.items()}


def _find_pair(client: MlflowClient, name: str, version: str) -> Mapping[str, str]:
    """Encoder and compositor that move together, in the order in which they do."""
    _require_compositor(name)
    key = get_version(client, name, version).tags.get(PAIR_TAG)
    encoder = find_tagged(client, ENCODER.name, PAIR_TAG, key) if key else None
    if encoder is None:
        raise InputError(
            f"{name} version {version}: the encoder that it was trained on is not registered; "
            "run `imprint register` in the folder that trained it"
        )
    return {ENCODER.name: encoder, name: version}


def _require_compositor(name: str) -> None:
    if name == ENCODER.name:
        raise InputError(f"{name} moves with the compositor that was trained on it; name {COMPOSITOR.name} instead")
    if name != COMPOSITOR.name:
        raise InputError(f"{name} is no model of this project; name {COMPOSITOR.name}")


def _require_reason(reason: str) -> str:
    if not reason.strip():
        raise InputError("give a reason (--reason TEXT): it is kept with the version")
    return reason.strip()
