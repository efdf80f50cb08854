"""A look at a Prefect server over plain HTTP: `import prefect` takes seconds, which no screen should wait for."""

from __future__ import annotations

import json
import os
import urllib.request
from dataclasses import dataclass
from typing import Any

DEFAULT_URL = "http://127.0.0.1:4200/api"
TIMEOUT_S = 1.5
NUM_RUNS = 6


@dataclass(frozen=True)
class FlowRun:
    """`start`: when it began, or is to begin; ISO 8601 in UTC. `name`: `flow/deployment`, or the flow's name."""

    name: str
    state: str
    start: str
    duration_s: float


def find_url() -> str:
    """Of the server that this process is told of, or that `prefect server start` makes."""
    return os.environ.get("PREFECT_API_URL", DEFAULT_URL).rstrip("/")


def list_runs(url: str) -> tuple[list[FlowRun], list[FlowRun]]:
    """The last runs and the next ones, at most NUM_RUNS each; sub-flows are left out. `OSError` or `ValueError` if the
    server does not answer within TIMEOUT_S, or not as Prefect does."""
    top = {"parent_task_run_id": {"is_null_": True}}
    past = {**top, "state": {"type": {"not_any_": ["SCHEDULED"]}}}
    future = {**top, "state": {"type": {"any_": ["SCHEDULED"]}}}
    last = _ask(url, "flow_runs", {"flow_runs": past, "sort": "START_TIME_DESC", "limit": NUM_RUNS})
    upcoming = _ask(url, "flow_runs", {"flow_runs": future, "sort": "EXPECTED_START_TIME_ASC", "limit": NUM_RUNS})
    names = _name_all(url, [*last, *upcoming])
    return [_build_run(run, names) for run in last], [_build_run(run, names) for run in upcoming]


def close_orphans(url: str) -> list[str]:
    """Mark the runs as crashed that a server which has just started still takes for running; their ids. Their processes
    ended with the last server, and until they are closed they hold their deployment's only place."""
    unfinished = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    ids = [run["id"] for run in _ask(url, "flow_runs", {"flow_runs": unfinished}, timeout_s=60.0)]
    state = {"type": "CRASHED", "message": "interrupted: the servers ended while it ran"}
    for run_id in ids:
        _post(f"{url}/flow_runs/{run_id}/set_state", {"state": state}, timeout_s=60.0)
    return ids


def _name_all(url: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    """Id => name of the flows and deployments of these runs."""
    names: dict[str, str] = {}
    for kind, key in (("flows", "flow_id"), ("deployments", "deployment_id")):
        ids = sorted({run[key] for run in runs if run.get(key)})
        if ids:
            found = _ask(url, kind, {kind: {"id": {"any_": ids}}})
            names |= {one["id"]: one["name"] for one in found}
    return names


def _build_run(run: dict[str, Any], names: dict[str, str]) -> FlowRun:
    parts = [names.get(run.get(key) or "", "") for key in ("flow_id", "deployment_id")]
    start = run.get("start_time") or run.get("expected_start_time") or ""
    name = "/".join(part for part in parts if part) or run["name"]
    return FlowRun(name, run.get("state_name") or "Pending", start, float(run.get("total_run_time") or 0.0))


def _ask(url: str, kind: str, body: dict[str, Any], *, timeout_s: float | None = None) -> list[dict[str, Any]]:
    found = _post(f"{url}/{kind}/filter", body, timeout_s=timeout_s or TIMEOUT_S)
    if not isinstance(found, list):
        raise ValueError(f"{url} answers unlike Prefect")
    return found


def _post(address: str, body: dict[str, Any], *, timeout_s: float) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())
