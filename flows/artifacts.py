"""What a flow run leaves to look at in Prefect: tables and links. Pictures are in MLflow and on the report pages, since
Prefect's pages strip inline ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run

from data_prep.ledger import LEDGERS_DIR
from imprint.core.records import Rejection, load_records
from imprint.tracking.store import open_store

if TYPE_CHECKING:
    from flows.gate import GateDecision

_DATA_STAGES = ("ingest", "extract_frames", "segment_objects", "mine_pairs")


def show_stages(states: Mapping[str, str]) -> None:
    """State and duration of each stage of the present flow run."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(str(flow_run.id))])))
    times_s = {run.name: run.estimated_run_time.total_seconds() for run in runs}
    rows = [
        {"stage": name, "state": state, "seconds": round(times_s.get(name, 0.0), 1)} for name, state in states.items()
    ]
    create_table_artifact(rows, key="stage-times", description="Stages of this run; Skipped: nothing had changed")


def show_rejections(root: Path) -> None:
    """What each data stage left out, by reason."""
    rows = [
        {"stage": stage, "reason": reason, "rows": count}
        for stage in _DATA_STAGES
        for reason, count in sorted(_count_reasons(root / LEDGERS_DIR / f"{stage}.parquet").items())
    ]
    create_table_artifact(rows, key="left-out", description="Left out of the data, by stage and reason (data/ledgers)")


def show_metrics(metrics: Mapping[str, float]) -> None:
    """The numbers of the evaluation."""
    rows = [{"metric": name, "value": value} for name, value in sorted(metrics.items())]
    create_table_artifact(rows, key="evaluation", description="metrics/evaluation.json")


def show_gate(decision: GateDecision) -> None:
    """The gate's decision, metric by metric."""
    rows = [{"metric": metric.name, "verdict": metric.verdict, "change": metric.change} for metric in decision.metrics]
    rows += [{"metric": limit.name, "verdict": "kept" if limit.kept else "broken"} for limit in decision.limits]
    create_table_artifact(rows, key="gate", description=decision.describe())


def show_links(pages: Mapping[str, Path], root: Path) -> None:
    """Links to report pages that exist, and to the runs of MLflow where its server is one that a browser reaches."""
    for title, page in pages.items():
        if page.is_file():
            key, where = title.replace(" ", "-"), f"A file on the worker's machine: {page}"
            create_link_artifact(page.resolve().as_uri(), link_text=title, key=key, description=where)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("http"):
        _, experiment = open_store(root)
        create_link_artifact(f"{uri}/#/experiments/{experiment}/runs", link_text="MLflow runs", key="mlflow-runs")
        create_link_artifact(f"{uri}/#/models", link_text="MLflow models", key="mlflow-models")


def _count_reasons(ledger: Path) -> Counter[str]:
    return Counter(row.reason for row in load_records(ledger, Rejection)) if ledger.is_file() else Counter()
