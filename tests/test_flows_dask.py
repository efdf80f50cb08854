"""Chunks on a real Dask cluster of two worker processes: a killed worker, a cancelled flow, a wrong cluster."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.dask_cluster import Cluster, build_data_project, start_cluster
from tests.test_data_prep_fanout import read_tree
from tests.toy_project import REPOSITORY

RUN_STAGES = """
import json, sys
from pathlib import Path
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.runtime import flow_run
from flows.graph import read_graph
from flows.runner import run_stages

@flow(persist_result=False)
def data(address):
    print("run", flow_run.id)
    return run_stages(read_graph(Path.cwd()), Path.cwd(), dask_address=address)

print("states", json.dumps(data(sys.argv[1])))
"""


def start_flow(root: Path, environment: dict[str, str], address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN_STAGES, address]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_manual(prefect_server, prepared, clip_params, tmp_path):
    environment = prefect_server | {"PYTHONPATH": str(REPOSITORY)}
    root = build_data_project(tmp_path / "project", clip_params)
    with start_cluster(tmp_path, root, environment) as cluster:
        t = time.monotonic()
        flow = start_flow(root, environment, cluster.address)
        out, _ = flow.communicate(timeout=200)
        print(out, time.monotonic() - t)
    for log in tmp_path.glob("*.log"):
        print(log, log.read_text())
    assert flow.returncode == 0
    for name in ("data/frames", "data/masks"):
        assert read_tree(root / name) == read_tree(prepared / name)
