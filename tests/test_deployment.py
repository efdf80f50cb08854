"""All deployments on servers of their own, and what is left running: nights, retrainings, promotion by event.

The pipeline is one of copies (tests/operations_project.py); the real one by a deployment is a drill
(`make drill-operations`), and without Prefect what `make demo PARAMS=params/smoke.yaml` runs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.operations import promote
from flows.pipelines import evaluate
from flows.processes import build_environment
from flows.registry import CHAMPION, COMPOSITOR, find_alias, list_versions
from flows.servers import down, find_environment, find_running, list_servers, up
from flows.versions import DATA_BRANCH, RETRAIN_BRANCH
from imprint.core.errors import InputError
from imprint.tracking.store import open_store
from tests.operations_project import build_operations_project, run

STAGES = (
    "ingest",
    "extract_frames",
    "pack_shards",
    "pretrain_encoder",
    "freeze_encoder",
    "train_compositor",
    "evaluate",
)
DEPLOYMENTS = {
    "imprint-pipeline/default": ("gpu", []),
    "prepare-data/nightly": ("cpu", ["0 2 * * *"]),
    "retrain/weekly": ("gpu", ["0 4 * * 6"]),
    "promote/on-demand": ("cpu", []),
    "rollback/on-demand": ("cpu", []),
    "evaluate/on-demand": ("gpu", []),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_operations_project(tmp_path_factory.mktemp("operations"))


@pytest.fixture(scope="module")
def servers(project: Path) -> Iterator[dict[str, str]]:
    """The environment that reaches the servers of `project`."""
    settings = up(project, prefect_port=find_port(), mlflow_port=find_port())
    processes = [psutil.Process(service.pid) for service in find_running(project)]
    stranger = subprocess.Popen(["sleep", "7200"])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", settings["MLFLOW_TRACKING_URI"])
            yield build_environment(project, **settings)
    finally:
        try:
            assert sorted(down(project)) == ["mlflow", "prefect", "worker-cpu", "worker-gpu"]
            assert not [process for process in processes if process.is_running()]
            assert stranger.poll() is None
            assert down(project) == []
        finally:
            stranger.kill()
            stranger.wait()


def test_all_deployments_are_there_and_up_again_starts_nothing(project: Path, servers: dict[str, str]) -> None:
    flows = {flow["id"]: flow["name"] for flow in ask(servers, "flows", {})}
    found = ask(servers, "deployments", {})
    described = {
        f"{flows[one['flow_id']]}/{one['name']}": (
            one["work_pool_name"],
            [schedule["schedule"]["cron"] for schedule in one["schedules"]],
        )
        for one in found
    }
    assert described == DEPLOYMENTS
    assert all(one["concurrency_options"]["collision_strategy"] == "CANCEL_NEW" for one in found)
    assert str(project) not in json.dumps([one["pull_steps"] for one in found])
    wait_until(lambda: find_scheduled(servers) == {"prepare-data", "retrain"}, "the schedules give runs")
    before = find_running(project)
    assert find_environment(project).items() <= servers.items()
    up(project)
    assert find_running(project) == before


@pytest.mark.timeout(900)
def test_a_retraining_becomes_champion_by_event_and_touches_nobodys_tree(
    project: Path, servers: dict[str, str]
) -> None:
    head, status = run(project, "git", "rev-parse", "HEAD"), run(project, "git", "status", "--porcelain")
    start(servers, "retrain/weekly")
    start(servers, "retrain/weekly")
    states = sorted(finish(servers, "retrain/weekly", 2))
    assert states == ["Cancelled", "Completed"]  # one at a time
    tasks = {task["name"]: task["state_name"] for task in ask(servers, "task_runs", {})}
    assert {name: tasks[name] for name in STAGES} == dict.fromkeys(STAGES, "Completed")
    wait_until(lambda: find_champion(project) == "1", "the event promotes version 1")
    assert list_versions(open_store(project)[0], COMPOSITOR.name)[0].tags["imprint.gate.outcome"] == "promote"

    assert run(project, "git", "rev-parse", "HEAD") == head
    assert run(project, "git", "status", "--porcelain") == status
    assert not (project / "models").exists()
    assert "First" not in run(project, "git", "log", "-1", "--format=%s", RETRAIN_BRANCH)
    names = run(project, "git", "diff", "--name-only", head, RETRAIN_BRANCH).split()
    assert names == ["dvc.lock", "metrics/evaluation.json"]
    keys = {artifact["key"] for artifact in ask(servers, "artifacts", {})}
    assert {"stage-times", "left-out", "evaluation", "gate", "gate-report", "mlflow-runs", "mlflow-models"} <= keys


@pytest.mark.drill
@pytest.mark.timeout(900)
def test_a_night_brings_clips_and_the_next_retraining_has_them(project: Path, servers: dict[str, str]) -> None:
    inbox = project.parent / "inbox"
    inbox.mkdir()
    (inbox / "three.mp4").write_text("three")
    start(servers, "prepare-data/nightly", inbox=str(inbox))
    assert finish(servers, "prepare-data/nightly", 1) == ["Completed"]
    start(servers, "retrain/weekly")
    assert sorted(finish(servers, "retrain/weekly", 3)) == ["Cancelled", "Completed", "Completed"]
    clone = project / "work" / "clones" / "weekly"
    assert (clone / "data" / "shards" / "three.mp4").is_file()
    assert (clone / "work" / "made").read_text().split() == ["one.mp4", "two.mp4"]  # the night's work was not redone
    assert "videos.dvc" in run(project, "git", "diff", "--name-only", "HEAD", DATA_BRANCH).split()
    assert len(list_versions(open_store(project)[0], COMPOSITOR.name)) == 1  # the models are the same bytes
    events = ask(servers, "events", {"filter": {"event": {"name": ["imprint.dataset.changed"]}}})
    assert events

    second = project.parent / "second"
    run(project, "git", "clone", "--quiet", "--branch", RETRAIN_BRANCH, str(project), str(second))
    run(second, "dvc", "pull")
    assert "Data and pipelines are up to date." in run(second, "dvc", "repro")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match=r"port \d+ is taken .* make up PREFECT_PORT="):
            up(tmp_path, prefect_port=other.getsockname()[1], mlflow_port=find_port())
    assert list(tmp_path.iterdir()) == []


def test_mlflows_database_is_the_projects_unless_the_environment_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = {"prefect": 4200, "mlflow": 5000}
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    assert f"sqlite:///{tmp_path}/mlflow.db" in list_servers(tmp_path, ports)["mlflow"]
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql+psycopg2://somebody:secret@localhost/mlflow")
    assert not [part for part in list_servers(tmp_path, ports)["mlflow"] if "://" in part]  # it is read by MLflow


IMPATIENT = """
import pathlib, signal, subprocess, sys
saves = f"trap 'kill -0 {sys.argv[1]} && echo saved > saved; exit' TERM; touch ready; while :; do sleep 0.1; done"
run = subprocess.Popen(["sh", "-c", saves], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: (run.kill(), sys.exit()))
run.wait()
"""


def test_down_lets_a_run_save_before_its_worker_and_the_servers_end(tmp_path: Path) -> None:
    server = subprocess.Popen(["sleep", "7200"])
    worker = subprocess.Popen([sys.executable, "-c", IMPATIENT, str(server.pid)], cwd=tmp_path)
    processes = {"prefect": (server, 4200), "worker-gpu": (worker, 0)}
    noted = [
        {"name": name, "pid": one.pid, "started_s": psutil.Process(one.pid).create_time(), "port": port}
        for name, (one, port) in processes.items()
    ]
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "services.json").write_text(json.dumps(noted))
    wait_until((tmp_path / "ready").exists, "the run has begun")
    assert down(tmp_path) == ["prefect", "worker-gpu"]
    assert (tmp_path / "saved").exists()
    assert None not in (server.poll(), worker.poll())


def test_a_version_may_be_given_as_a_number_or_as_text() -> None:
    for flow in (evaluate, promote):
        schema = parameter_schema(flow.fn).model_dump()
        for version in (2, "2"):  # `--param version=2` is the first, an event's the second
            validate({"version": version}, schema, raise_on_error=True)


def test_down_spares_a_process_that_has_got_the_number_since(tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    noted = [{"name": "prefect", "pid": os.getpid(), "started_s": 1.0, "port": 4200}]
    (tmp_path / ".prefect" / "services.json").write_text(json.dumps(noted))
    assert find_environment(tmp_path) == {}
    assert down(tmp_path) == []


def start(environment: dict[str, str], deployment: str, **parameters: Any) -> None:
    options = [part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")]
    command = ["prefect", "deployment", "run", deployment, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def finish(environment: dict[str, str], deployment: str, number: int) -> list[str]:
    """Names of the final states of all runs so far, once there are as many as `number`."""
    flow, name = deployment.split("/")
    body = {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}
    states: list[dict[str, Any]] = []

    def is_done() -> bool:
        runs = ask(environment, "flow_runs", body)
        states[:] = [one["state"] for one in runs if one["auto_scheduled"] is False]
        ended = [state for state in states if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
        return len(ended) == number

    wait_until(is_done, f"{deployment} ends", timeout_s=800)
    assert not [state["message"] for state in states if state["type"] in ("FAILED", "CRASHED")]
    return [state["name"] for state in states]


def find_scheduled(environment: dict[str, str]) -> set[str]:
    """Flows with runs that their deployments' schedules have made."""
    flows = {flow["id"]: flow["name"] for flow in ask(environment, "flows", {})}
    return {flows[one["flow_id"]] for one in ask(environment, "flow_runs", {}) if one["auto_scheduled"]}


def find_champion(project: Path) -> str | None:
    return find_alias(open_store(project)[0], COMPOSITOR.name, CHAMPION)


def ask(environment: dict[str, str], what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    url = f"{environment['PREFECT_API_URL']}/{what}/filter"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = json.loads(urllib.request.urlopen(request, timeout=30).read())
    return answer["events"] if what == "events" else answer


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 300) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out: {what}"
        time.sleep(0.5)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
