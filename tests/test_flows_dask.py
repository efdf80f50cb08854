"""Chunks on a real Dask cluster of two worker processes: a wrong cluster, an ended flow, a killed worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import cluster as cluster_module
from flows.cluster import count_threads
from flows.commands import run_flow
from imprint.core.errors import InputError
from tests.dask_cluster import Cluster, build_data_project, end_all, start_cluster, start_worker
from tests.test_data_prep_fanout import read_tree
from tests.test_flows import wait_until
from tests.toy_project import REPOSITORY, build_toy_project

RUN = """
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
    return str(flow_run.id), run_stages(read_graph(Path.cwd()), Path.cwd(), dask_address=address)

run_id, states = data(sys.argv[1])
with get_client(sync_client=True) as client:
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run_id]}))
print("found", json.dumps([states, {run.name: run.state_name for run in runs}]))
"""
SLOW_CHUNK = """
import pathlib, sys, time
chunk = pathlib.Path(sys.argv[2].replace("/", "of"))
chunk.touch()
try:
    time.sleep(300)
except KeyboardInterrupt:
    chunk.with_suffix(".saved").touch()
"""


@pytest.fixture(scope="module")
def environment(prefect_server: dict[str, str]) -> dict[str, str]:
    return prefect_server | {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with start_cluster(tmp_path_factory.mktemp("dask"), environment) as running:
        yield running


def test_a_wrong_address_and_a_wrong_flow_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_S", 0.5)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        count_threads("tcp://127.0.0.1:1", tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with pytest.raises(InputError, match="--dask: flow evaluate does not work on clips"):
        run_flow("evaluate", "tcp://127.0.0.1:1")


def test_a_worker_with_another_version_is_named(cluster: Cluster, environment: dict[str, str], tmp_path: Path) -> None:
    assert count_threads(cluster.address, tmp_path) == 2
    other = tmp_path / "packages" / "decord-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: decord\nVersion: 0.1\n")
    changed = environment | {"PYTHONPATH": f"{other.parent}:{REPOSITORY}"}
    worker = start_worker(cluster.address, tmp_path, "other", changed)
    try:
        log = tmp_path / "other.log"
        wait_until(lambda: "Registered to" in log.read_text(), "the worker joins")
        with pytest.raises(InputError, match=r"Dask worker tcp://\S+ differs: decord 0.1 \(here 0.6.0\); it needs"):
            count_threads(cluster.address, tmp_path)
    finally:
        end_all([worker])


def test_a_failed_chunk_fails_the_run(cluster: Cluster, environment: dict[str, str], tmp_path: Path) -> None:
    root = build_toy_project(tmp_path)
    (root / "right.py").write_text("import sys; sys.exit(sys.argv[1:] == ['--chunk', '2/4'])")
    (root / "right.on").touch()  # `left` waits for it
    with start_flow(root, environment, cluster.address) as flow:
        output, _ = flow.communicate(timeout=200)
    assert flow.returncode != 0
    assert "StageFailedError: right: chunk 2/4 ended with exit code 1" in output
    assert not (root / "right.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_flow_ends_its_chunks(
    cluster: Cluster, environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    root = build_toy_project(tmp_path)
    (root / "right.py").write_text(SLOW_CHUNK)
    stages = root / "dvc.yaml"
    stages.write_text(stages.read_text().replace("timeout_s: 60", "timeout_s: 600"))  # which would end chunks as well
    with start_flow(root, environment, cluster.address) as flow:
        wait_until(lambda: len(list(root.glob("?of4"))) == 2, "both workers are at work", timeout_s=200)
        flow.send_signal(number)
        wait_until(lambda: not any(find_chunks(worker) for worker in cluster.workers), "the chunks end")
        flow.communicate(timeout=100)
    assert len(list(root.glob("*.saved"))) == 2
    assert len(list(root.glob("?of4"))) == 2, "a chunk that waited was started"


@pytest.mark.drill
@pytest.mark.timeout(600)  # much for cores that others use too
def test_a_killed_worker_s_chunks_are_made_by_the_other(
    cluster: Cluster, environment: dict[str, str], prepared: Path, clip_params, tmp_path: Path
) -> None:
    root = build_data_project(tmp_path, clip_params)
    victim = cluster.workers[0]
    with start_flow(root, environment, cluster.address) as flow:
        wait_until(lambda: find_chunks(victim), "the worker is at work", timeout_s=200)
        orphans = find_chunks(victim)
        victim.kill()
        output, _ = flow.communicate(timeout=500)
    assert flow.returncode == 0, output
    line = next(line for line in output.splitlines() if line.startswith("found "))
    stages, tasks = json.loads(line.removeprefix("found "))
    assert stages == dict.fromkeys(("ingest", "extract_frames", "segment_objects"), "Completed")
    fanned_out = ("extract_frames", "segment_objects")
    chunks = [f"{stage} {number}/4" for stage in fanned_out for number in range(1, 5)]
    assert {name: tasks.get(name) for name in chunks} == dict.fromkeys(chunks, "Completed")
    assert not [process for process in orphans if process.is_running()]
    for name in ("data/frames", "data/masks"):
        assert read_tree(root / name) == read_tree(prepared / name)


def start_flow(root: Path, environment: dict[str, str], address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, address]
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def find_chunks(worker: subprocess.Popen) -> list[psutil.Process]:
    """All processes of the chunk that a worker is at work on."""
    if worker.poll() is not None:
        return []
    children = psutil.Process(worker.pid).children(recursive=True)
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
