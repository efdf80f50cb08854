"""The whole pipeline as a Prefect deployment: a real server and worker, the smoke parameters, twice."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.workspace import make_workspace
from tests.source_tree import ROOT
from tests.toy_project import PROGRAMS, end

STAGES = (
    *("demo_clips", "ingest", "extract_frames", "segment_objects", "mine_pairs", "pack_shards", "report_data"),
    *("pretrain_encoder", "freeze_encoder", "train_compositor", "evaluate"),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the smoke parameters, outside the user's tree."""
    folder = tmp_path_factory.mktemp("deployment")
    return make_workspace(ROOT / "params" / "smoke.yaml", ROOT, folder=folder)


@pytest.fixture(scope="module")
def worker(prefect_server: dict[str, str], workspace: Path) -> Iterator[dict[str, str]]:
    """The environment of a server that has the deployment and a worker for it."""
    environment = prefect_server | {"IMPRINT_HOME": str(workspace)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    home = Path(environment["PREFECT_HOME"])
    prefect = str(PROGRAMS / "prefect")
    for command in (["work-pool", "create", "local", "--type", "process"], ["--no-prompt", "deploy", "--all"]):
        subprocess.run([prefect, *command], cwd=workspace, env=environment, check=True, capture_output=True)
    start = [prefect, "worker", "start", "--pool", "local", "--limit", "1"]
    with (
        (home / "worker.log").open("w") as log,
        subprocess.Popen(start, cwd=home, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield environment
        finally:
            end(process)


@pytest.mark.timeout(900)
def test_the_deployed_pipeline_runs_and_then_skips_every_stage(workspace: Path, worker: dict[str, str]) -> None:
    states = run_deployment(worker)
    assert {name: states[name] for name in STAGES} == dict.fromkeys(STAGES, "Completed")
    assert (workspace / "reports" / "evaluation" / "index.html").is_file()
    assert (workspace / "mlflow.db").is_file()
    weights = (workspace / "models" / "compositor" / "imprint.json").stat().st_mtime_ns

    states = run_deployment(worker)
    assert {name: states[name] for name in STAGES} == dict.fromkeys(STAGES, "Skipped")
    chunks = {name: state for name, state in states.items() if re.search(r"\d/\d", name)}
    assert chunks
    assert set(chunks.values()) == {"Skipped"}
    assert (workspace / "models" / "compositor" / "imprint.json").stat().st_mtime_ns == weights


def run_deployment(environment: dict[str, str]) -> dict[str, str]:
    """Task run => name of its state, of one run of the deployment."""
    command = [str(PROGRAMS / "prefect"), "deployment", "run", "imprint-pipeline/demo", "--watch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    task_runs = post(f"{environment['PREFECT_API_URL']}/task_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
    newest: dict[str, str] = {}
    for run in task_runs:
        newest.setdefault(run["name"], run["state_name"])
    return newest


def post(url: str, body: dict) -> list[dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=30).read())
