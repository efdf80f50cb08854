"""Tracking against a real SQLite store: what lands in MLflow, resuming, and an MLflow that is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imprint.core.files import compute_path_digest
from imprint.tracking import start_run
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store

INPUTS = {"data/shards": "0123456789abcdef0123456789abcdef.dir", "models/encoder": "a" * 64}


@pytest.fixture(autouse=True)
def _default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_run(root: Path, **changes: Any) -> Any:
    settings = {"params": {"seed": 0, "learning_rate": {"unet": 0.1}}, "inputs": INPUTS, "root": root}
    return start_run(stage="train", key="0123456789abcdef", work_dir=root / "work", **settings | changes)


def find_runs(root: Path) -> list[Any]:
    client, experiment = open_store(root)
    return list(client.search_runs([experiment]))


def test_everything_of_a_run_is_logged(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    picture = tmp_path / "sample.png"
    picture.write_bytes(b"picture")
    with open_run(tmp_path) as tracker:
        for step in range(3):
            tracker.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        tracker.log_file(picture, folder="samples")
        tracker.log_model(kind="encoder", directory=weights, metrics={"psnr": 25.0})

    client, experiment = open_store(tmp_path)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "learning_rate.unet": "0.1"}
    assert run.data.tags["dvc.stage"] == "train"
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")] == [1.0, 0.5, 1 / 3]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "samples")] == ["samples/sample.png"]
    digests = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert digests == {"data/shards": INPUTS["data/shards"], "models/encoder": "a" * 36}
    (model,) = client.search_logged_models([experiment])
    assert model.tags[DIGEST_TAG] == compute_path_digest(weights)
    assert {metric.key: metric.value for metric in model.metrics} == {"psnr": 25.0}
    assert model.source_run_id == run.info.run_id
    location = client.get_experiment(experiment).artifact_location
    assert location == (tmp_path / "mlruns").as_uri()


def test_git_commit_and_dirty_flag(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "file").write_text("one")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    with open_run(tmp_path):
        pass
    (tmp_path / "file").write_text("two")
    with open_run(tmp_path, params={}, inputs={}) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    with start_run(
        stage="other", key="ffff", work_dir=tmp_path / "other", params={}, inputs={}, root=tmp_path
    ) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    tags = {run.data.tags["dvc.stage"]: run.data.tags for run in find_runs(tmp_path)}
    assert {name: tag["mlflow.source.git.commit"] for name, tag in tags.items()} == dict.fromkeys(tags, commit)
    assert {name: tag["git.dirty"] for name, tag in tags.items()} == {"train": "false", "other": "true"}


def test_the_same_work_folder_continues_the_same_run(tmp_path: Path) -> None:
    open_store(tmp_path)  # an interrupted run waits for MLflow a few seconds only, too short for a new database here
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
        raise KeyboardInterrupt
    (run,) = find_runs(tmp_path)
    assert run.info.status == "KILLED"
    with (tmp_path / "work" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')  # what a SIGKILL may leave
    with open_run(tmp_path) as tracker:
        tracker.log_metrics({"loss": float("nan")}, step=1)
    (again,) = find_runs(tmp_path)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    lines = (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": None}]


def test_a_dead_server_is_a_warning_and_blocks_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with open_run(tmp_path) as tracker:
        start_s = time.monotonic()
        for step in range(100):
            tracker.log_metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - start_s < 1.0
    assert capsys.readouterr().err.count("warning: MLflow failed") == 1
    assert len((tmp_path / "work" / "metrics.jsonl").read_text().splitlines()) == 100


def test_processes_that_start_at_once_share_one_new_database(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from imprint.tracking import start_run\n"
        "root, name = Path(sys.argv[1]), sys.argv[2]\n"
        "with start_run(stage=name, key=name, work_dir=root / name, params={}, inputs={}, root=root) as tracker:\n"
        "    tracker.log_metrics({'loss': 1.0}, step=0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    commands = [[sys.executable, "-c", code, str(tmp_path), name] for name in ("one", "two")]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for command in commands]
    assert [process.communicate(timeout=120)[1] for process in started] == [b"", b""]
    assert sorted(run.data.tags["dvc.stage"] for run in find_runs(tmp_path)) == ["one", "two"]
