"""The named flows: each a thin selection of the stages in `dvc.yaml`. They run in the project's root folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.graph import read_graph, select_upstream
from flows.registry import read_metrics, register_all
from flows.runner import run_stages

_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=16)  # Prefect's own default is unbounded


@flow(name="prepare-data", task_runner=_TASK_RUNNER, persist_result=False)
def prepare_data(num_chunks: int = 2) -> dict[str, str]:
    """From videos to training shards, and the page on them; `num_chunks` tasks per stage that fans out over clips."""
    root = Path.cwd()
    return run_stages(select_upstream(read_graph(root), ["report_data"]), root, num_chunks)


@flow(name="pretrain-encoder", task_runner=_TASK_RUNNER, persist_result=False)
def pretrain_encoder() -> dict[str, str]:
    """Stage 1 of the paper, and the frozen encoder as an artefact of its own."""
    return _run_alone("pretrain_encoder", "freeze_encoder")


@flow(name="train-compositor", task_runner=_TASK_RUNNER, persist_result=False)
def train_compositor() -> dict[str, str]:
    """Stage 2 of the paper."""
    return _run_alone("train_compositor")


@flow(name="evaluate", task_runner=_TASK_RUNNER, persist_result=False)
def evaluate() -> dict[str, str]:
    """Metrics, pictures and the report page."""
    states = _run_alone("evaluate")
    rows = [{"metric": name, "value": value} for name, value in sorted(read_metrics(Path.cwd()).items())]
    create_table_artifact(rows, key="evaluation", description="metrics/evaluation.json")
    return states


@flow(name="imprint-pipeline", task_runner=_TASK_RUNNER, persist_result=False)
def imprint_pipeline(num_chunks: int = 2) -> dict[str, str]:
    """Everything, then registration in MLflow."""
    states = prepare_data(num_chunks) | pretrain_encoder() | train_compositor() | evaluate()
    register()
    return states


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register() -> None:
    """Register both models from their files; content that has a version already is left as it is."""
    for model in register_all(Path.cwd()):
        get_run_logger().info(model.describe())


def _run_alone(*names: str) -> dict[str, str]:
    root = Path.cwd()
    graph = read_graph(root)
    return run_stages({name: graph[name] for name in graph if name in names}, root)
