"""The flows that are left running: scheduled retraining in a clone of its own, promotion, rollback."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows import promotion
from flows.pipelines import SHARDS, evaluate, prepare_data, pretrain_encoder, train_compositor
from flows.publication import commit, fetch, judge, push, register
from flows.registry import CHALLENGER, COMPOSITOR, find_alias
from flows.versions import RETRAIN_BRANCH, read_output_digest
from imprint.core.errors import InputError
from imprint.tracking.store import open_store, resolve_tracking_uri


@flow(name="retrain", persist_result=False)
def retrain(num_chunks: int = 2, *, branch: str = RETRAIN_BRANCH) -> dict[str, str]:
    """Data, training, evaluation, registration as challenger, gate, `dvc push`, and then the commit to `branch`.

    Runs in the clone that `flows.clone` made and records in the store of the project that it is a clone of.
    """
    root = Path.cwd()
    home = find_home()
    _use_store(home)
    fetch(root, overwrite=True)
    states = prepare_data(num_chunks) | pretrain_encoder() | train_compositor() | evaluate()
    register(root)
    decision = judge(root)
    push(root)
    commit(root, branch, f"{decision.describe()}\n\nData set {read_output_digest(root, SHARDS)}", home=home)
    return states


@flow(name="promote", persist_result=False)
def promote(
    version: str | int = "", reason: str = "by hand", name: str = COMPOSITOR.name, *, decision: str = ""
) -> State:
    """Make a version, by default the challenger, the champion.

    decision: the gate's that asks for it, by an event; then nothing is done where it does not hold any more.
    """
    root = Path.cwd()
    version = str(version) or _find_challenger(root, name)
    obstacle = ""
    if decision:
        obstacle = promotion.promote_as_decided(name, version, decision=decision, reason=reason, root=root)
    else:
        promotion.promote(name, version, reason=reason, root=root)
    told = f"nothing is promoted: {obstacle}" if obstacle else f"{name} version {version} is champion: {reason}"
    get_run_logger().log(logging.WARNING if obstacle else logging.INFO, told)
    return Completed(message=told)


@flow(name="rollback", persist_result=False)
def rollback(reason: str = "by hand", name: str = COMPOSITOR.name) -> None:
    """Make the version that was champion before the present one champion again."""
    version = promotion.rollback(name, reason=reason, root=Path.cwd())
    get_run_logger().info("%s version %s is champion again: %s", name, version, reason)


def find_home() -> Path:
    """The project that the worker serves. `InputError` without IMPRINT_HOME."""
    home = os.environ.get("IMPRINT_HOME")
    if not home:
        raise InputError("IMPRINT_HOME is not set; it names the project's folder for the worker (`make up` sets it)")
    return Path(home)


def _use_store(home: Path) -> None:
    """The stages and the registry of this run record in the project's store, not in the clone's."""
    os.environ["MLFLOW_TRACKING_URI"] = resolve_tracking_uri(home)
    open_store(home)  # where there is none yet, its artifacts belong into the project too


def _find_challenger(root: Path, name: str) -> str:
    client, _ = open_store(root)
    version = find_alias(client, name, CHALLENGER)
    if version is None:
        raise InputError(f"{name} has no challenger; name a version (`imprint models` lists them)")
    return version
