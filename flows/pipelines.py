"""The named flows over the stages in `dvc.yaml`: each a thin selection. They run in the project's root folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from data_prep.ingest.stage import OUT as CLIPS
from flows import artifacts
from flows.events import emit_dataset_changed
from flows.graph import StageNode, read_graph, select_upstream
from flows.publication import commit, fetch, judge, measure, push, register, sync
from flows.registry import read_metrics
from flows.runner import run_stages
from flows.versions import DATA_BRANCH, read_output_digest
from imprint.core.records import ClipRecord, load_records

SHARDS = "data/shards"
_PAGES = {"data report": Path("reports/data/index.html"), "evaluation report": Path("reports/evaluation/index.html")}
_TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=16)  # Prefect's own default is unbounded


@flow(name="prepare-data", task_runner=_TASK_RUNNER, persist_result=False)
def prepare_data(
    num_chunks: int = 2,
    dask_address: str | None = None,
    *,
    share: bool = False,
    inbox: str = "",
    branch: str = DATA_BRANCH,
) -> dict[str, str]:
    """From videos to training shards; `num_chunks` tasks per stage that fans out over clips, on the Dask cluster of
    `dask_address` (tcp://HOST:PORT of its scheduler) if there is one.

    share: fetch what others made, bring in new videos first (from the folder `inbox`, else IMPRINT_INBOX, else from
    where the data set was imported), and at the end `dvc push` and commit the new version's pointers to `branch`. HEAD
    and the work tree's own changes stay as they are.
    """
    root = Path.cwd()
    if share:
        fetch(root)
        sync(root, inbox or os.environ.get("IMPRINT_INBOX", ""))
    before = read_output_digest(root, SHARDS)
    states = _run_and_show(select_data_stages(read_graph(root)), num_chunks, dask_address)
    artifacts.show_rejections(root)
    _tell_of_change(before, root)
    if share:
        push(root)
        commit(root, branch, f"Data set {read_output_digest(root, SHARDS)}", home=root)
    return states


@flow(name="pretrain-encoder", task_runner=_TASK_RUNNER, persist_result=False)
def pretrain_encoder() -> dict[str, str]:
    """Stage 1 of the paper, and the frozen encoder as an artefact of its own."""
    return _run_alone("pretrain_encoder", "freeze_encoder")


@flow(name="train-compositor", task_runner=_TASK_RUNNER, persist_result=False)
def train_compositor() -> dict[str, str]:
    """Stage 2 of the paper."""
    return _run_alone("train_compositor")


@flow(name="evaluate", task_runner=_TASK_RUNNER, persist_result=False)
def evaluate(version: str | int = "") -> dict[str, str]:
    """Metrics, pictures and the report page of the model in `models/`, or of a registered version of the compositor on
    the cases with ground truth."""
    if version:
        artifacts.show_metrics(measure(Path.cwd(), str(version)))
        return {}
    states = _run_alone("evaluate")
    artifacts.show_metrics(read_metrics(Path.cwd()))
    return states


@flow(name="imprint-pipeline", task_runner=_TASK_RUNNER, persist_result=False)
def imprint_pipeline(num_chunks: int = 2, dask_address: str | None = None) -> dict[str, str]:
    """Everything, then registration in MLflow as challenger, and the gate's decision about it. The parameters are those
    of `prepare_data`."""
    states = prepare_data(num_chunks, dask_address) | pretrain_encoder() | train_compositor() | evaluate()
    register(Path.cwd())
    judge(Path.cwd())
    return states


def select_data_stages(graph: dict[str, StageNode]) -> dict[str, StageNode]:
    """What the shards need, and the report on them."""
    return select_upstream(graph, ["pack_shards", *(name for name in graph if name == "report_data")])


def _tell_of_change(before: str | None, root: Path) -> None:
    after = read_output_digest(root, SHARDS)
    if after is None or after == before:
        return
    num_clips = len(load_records(root / CLIPS, ClipRecord))
    get_run_logger().info("data/shards: %s => %s, %d clips", before, after, num_clips)
    emit_dataset_changed(before, after, num_clips)


def _run_alone(*names: str) -> dict[str, str]:
    graph = read_graph(Path.cwd())
    return _run_and_show({name: graph[name] for name in graph if name in names})


def _run_and_show(stages: dict[str, StageNode], num_chunks: int = 2, dask_address: str | None = None) -> dict[str, str]:
    root = Path.cwd()
    states = run_stages(stages, root, num_chunks, dask_address=dask_address)
    artifacts.show_stages(states)
    artifacts.show_links(_PAGES, root)
    return states
