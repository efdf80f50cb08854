"""The two events that others can act on: an automation in Prefect, or a trigger of a deployment (`prefect.yaml`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.events import emit_event

if TYPE_CHECKING:
    from flows.gate import GateDecision

DATASET_CHANGED = "imprint.dataset.changed"
MODEL_REGISTERED = "imprint.model.registered"


def emit_dataset_changed(before: str | None, after: str, num_clips: int) -> None:
    """The training data has another digest (DVC's md5 of `data/shards`) than before the run."""
    resource = {"prefect.resource.id": f"imprint.dataset.{after}", "prefect.resource.name": "data/shards"}
    payload = {"digest": after, "before": before, "num_clips": num_clips}
    emit_event(event=DATASET_CHANGED, resource=resource, payload=payload)


def emit_model_registered(name: str, decision: GateDecision) -> None:
    """A version is registered and judged. The label `imprint.gate` is what a trigger matches: `promote` or `keep`."""
    resource = {
        "prefect.resource.id": f"imprint.model.{name}.{decision.challenger_version}",
        "prefect.resource.name": f"{name} version {decision.challenger_version}",
        "imprint.gate": "promote" if decision.promote else "keep",
    }
    emit_event(event=MODEL_REGISTERED, resource=resource, payload=describe_decision(name, decision))


def describe_decision(name: str, decision: GateDecision) -> dict[str, str]:
    """What `promote/on-demand` is started with; `decision` names the one that it must still be."""
    return {
        "name": name,
        "version": decision.challenger_version,
        "reason": f"gate: {decision.explanation}",
        "decision": decision.compute_digest(),
    }
