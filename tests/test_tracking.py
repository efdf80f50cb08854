"""Tracking against a real SQLite store: what lands in MLflow, resuming, and an MLflow that is away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from imprint.core.files import compute_path_digest, write_json_atomic
from imprint.tracking import send_unsent, start_run
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store

INPUTS = {"data/shards": "0123456789abcdef0123456789abcdef.dir", "models/encoder": "a" * 64}


@pytest.fixture(autouse=True)
def _default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_run(root: Path, **changes: Any) -> Any:
    about = {"stage": "train", "params": {"seed": 0, "learning_rate": {"unet": 0.1}}, "inputs": INPUTS}
    settings = about | {"work_dir": root / "work", "root": root} | changes
    return start_run(key="0123456789abcdef", **settings)


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
    assert list_metrics(tmp_path / "work") == [(0, {"loss": 1.0}), (1, {"loss": None})]


def list_metrics(work_dir: Path) -> list[tuple[int, dict[str, float | None]]]:
    entries = map(json.loads, (work_dir / "metrics.jsonl").read_text().splitlines())
    return [(entry["step"], entry["metrics"]) for entry in entries if "metrics" in entry]


def test_steps_that_a_resumed_run_repeats_are_logged_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), open_run(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log_metrics({"loss": 1.0 / step}, step=step)
        raise SystemExit(143)
    with open_run(tmp_path) as tracker:  # from a checkpoint of step 1
        for step in (2, 3, 4):
            tracker.log_metrics({"loss": 1.0 / step, "more": 0.0}, step=step)
    assert read_history(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert read_history(tmp_path, "more") == [(2, 0.0), (3, 0.0), (4, 0.0)]


def read_history(root: Path, metric: str) -> list[tuple[int, float]]:
    client, _ = open_store(root)
    (run,) = find_runs(root)
    return [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, metric)]


def test_a_process_that_was_killed_before_it_could_note_what_it_sent_sends_nothing_twice(tmp_path: Path) -> None:
    with open_run(tmp_path) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
    record = json.loads((tmp_path / "work" / "mlflow_run.json").read_text())
    write_json_atomic(tmp_path / "work" / "mlflow_run.json", record | {"sent": 0})
    with open_run(tmp_path) as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1)
    assert read_history(tmp_path, "loss") == [(0, 1.0), (1, 0.5)]


def test_what_a_store_that_was_away_has_not_got_is_sent_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the project's next run, which knows of the first by its work folder alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/disk/mlflow.db")
    disk, picture, weights = (tmp_path / name for name in ("disk", "sample.png", "weights"))
    disk.write_text("not mounted")
    picture.write_bytes(b"picture")
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")
    early = {"work_dir": tmp_path / "work" / "train" / "first"}
    with open_run(tmp_path, **early) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
        tracker.log_file(picture, folder="samples")
        tracker.log_model(kind="encoder", directory=weights, metrics={"loss": 1.0}, step=7, passing=True)
    assert "has not got 4 entries" in capsys.readouterr().err
    disk.unlink()
    with open_run(tmp_path, stage="later", work_dir=tmp_path / "work" / "later" / "second") as tracker:
        tracker.log_metrics({"loss": 2.0}, step=0)
    runs = {run.data.tags["dvc.stage"]: run for run in find_runs(tmp_path)}
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(["train", "later"], "FINISHED")
    assert {name: run.data.metrics["loss"] for name, run in runs.items()} == {"train": 1.0, "later": 2.0}
    client, experiment = open_store(tmp_path)
    assert client.list_artifacts(runs["train"].info.run_id, "samples")
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.params, model.source_run_id) == (
        "encoder-step-7",
        {"step": "7"},
        runs["train"].info.run_id,
    )
    assert not weights.exists()
    assert send_unsent(tmp_path) == {}


def test_a_work_folder_of_before_there_were_journals_holds_nothing_to_send(tmp_path: Path) -> None:
    work_dir = tmp_path / "work" / "pretrain_encoder" / "old"
    write_json_atomic(work_dir / "mlflow_run.json", {"uri": "sqlite:///x.db", "run_id": "1", "models": {}})
    (work_dir / "metrics.jsonl").write_text('{"step": 10, "loss": 0.5}\n')
    assert send_unsent(tmp_path) == {}


def test_an_entry_that_cannot_be_sent_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(tmp_path) as tracker:
        tracker.log_file(tmp_path / "gone.png", folder="samples")
        tracker.log_metrics({"loss": 1.0}, step=0)
    assert "gone.png is gone" in capsys.readouterr().err
    assert read_history(tmp_path, "loss") == [(0, 1.0)]


@pytest.mark.drill
def test_a_server_that_comes_late_and_is_killed_in_between_gets_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = find_free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    servers: list[subprocess.Popen[bytes]] = []
    try:
        with open_run(tmp_path) as tracker:
            tracker.log_metrics({"loss": 0.0}, step=0)
            time.sleep(3)
            servers.append(start_server(tmp_path, port))
            wait_until(lambda: [step for step, _ in read_history(tmp_path, "loss")] == [0])
            end_server(servers.pop())
            for step in range(1, 50):
                tracker.log_metrics({"loss": float(step)}, step=step)
            time.sleep(3)
            servers.append(start_server(tmp_path, port))
            tracker.log_metrics({"loss": 50.0}, step=50)
            wait_until(lambda: len(read_history(tmp_path, "loss")) == 51)
        assert read_history(tmp_path, "loss") == [(step, float(step)) for step in range(51)]
        (run,) = find_runs(tmp_path)
        assert run.info.status == "FINISHED"
    finally:
        for server in servers:
            end_server(server)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    output = subprocess.DEVNULL
    return subprocess.Popen([*command, *store], stdout=output, stderr=output, start_new_session=True)


def end_server(server: subprocess.Popen[bytes]) -> None:
    """With all that it has started, of whatever process group."""
    for process in [*psutil.Process(server.pid).children(recursive=True), server]:
        process.kill()
    server.wait()


def wait_until(is_so: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Poll; a server that is not there yet is no failure."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            if is_so():
                return
        except Exception as error:
            reason = error
        time.sleep(1.0)
    raise AssertionError(f"not so within {timeout_s} s: {reason}")


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
    errors = capsys.readouterr().err
    assert errors.count("warning: MLflow cannot be reached") == 1
    assert "has not got 101 entries" in errors  # the last is the run's end
    assert len(list_metrics(tmp_path / "work")) == 100


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
