"""Tasks around the stages, with effects outside of the project's folder: remotes, branches, the registry.

None is a DVC stage, each can be repeated. A remote that does not answer is tried again; nothing else is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State
from prefect.tasks import exponential_backoff

from flows import artifacts, promotion, versions
from flows.events import emit_model_registered
from flows.gate import GateDecision
from flows.gate_report import REPORT as GATE_REPORT
from flows.registry import COMPOSITOR
from imprint.tracking.mlflow_run import flatten

_PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}


def _may_retry(_task: Any, _task_run: Any, state: State) -> bool:
    return isinstance(state.result(raise_on_failure=False), versions.TransferError)


_TRANSFER: dict[str, Any] = _PLAIN | {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(10),
    "retry_condition_fn": _may_retry,
}


@task(**_TRANSFER)
def fetch(root: Path, *, overwrite: bool = False) -> None:
    """What others pushed, into DVC's cache, and data sets that are missing here into the work tree."""
    if not versions.fetch_data(root):
        get_run_logger().info("DVC has no default remote (dvc remote add -d NAME URL): nothing to fetch")
    versions.checkout_data(root, overwrite=overwrite)


@task(**_TRANSFER)
def push(root: Path) -> None:
    """Data, models and run cache to DVC's remote."""
    if not versions.push_data(root):
        get_run_logger().warning("DVC has no default remote (dvc remote add -d NAME URL): nothing was pushed")


@task(**_TRANSFER)
def sync(root: Path, inbox: str) -> None:
    """New videos into the data set."""
    result = versions.sync_videos(root, inbox)
    get_run_logger().info("new videos (%s): %s", result.how, ", ".join(result.added) or "none")


@task(**_TRANSFER)
def commit(root: Path, branch: str, message: str, *, home: Path) -> str | None:
    """Pointers, lock file and metrics to a branch; from a clone on to the project `home`, and from there to the Git
    remote that IMPRINT_GIT_REMOTE names."""
    route = [(root, "origin")] if root.resolve() != home.resolve() else []
    route += [(home, remote)] if (remote := os.environ.get("IMPRINT_GIT_REMOTE")) else []
    for repository, remote in reversed(route):
        versions.fetch_branch(repository, remote, branch)
    made = versions.commit_results(root, branch, message)
    for repository, remote in route:
        versions.push_branch(repository, remote, branch)
    get_run_logger().info("%s: %s", branch, made or "nothing new to commit")
    return made


@task(**_PLAIN)
def register(root: Path) -> None:
    """Both models from their files, as challengers; content that has a version already is left as it is."""
    get_run_logger().info(promotion.register_challenger(root).describe())


@task(**_PLAIN)
def judge(root: Path) -> GateDecision:
    """Challenger against champion. The event of it is what `promote/on-demand` waits for."""
    decision = promotion.run_gate(root, remeasure=True)
    get_run_logger().info(decision.describe())
    artifacts.show_gate(decision)
    artifacts.show_links({"gate report": root / GATE_REPORT / "index.html"}, root)
    emit_model_registered(COMPOSITOR.name, decision)
    return decision


@task(**_PLAIN)
def measure(root: Path, version: str) -> dict[str, float]:
    """A registered version on the cases with ground truth."""
    values = flatten(promotion.evaluate_version(COMPOSITOR.name, version, root))
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}
