"""Drill: two weeks of operation in minutes, with real servers, workers and deployments, and small real trainings.

A first model, new clips in the night, a better model that is promoted, a worse one that is not, a rollback; the served
model behind `models:/imprint-compositor@champion` follows. `make drill-operations`. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from demo.unpack import ARCHIVE, unpack
from flows.clone import FOLDER as CLONES
from flows.processes import build_environment
from flows.servers import down, find_running, up
from flows.versions import DATA_BRANCH, RETRAIN_BRANCH
from flows.workspace import make_workspace
from imprint.tracking.store import open_store

NAME = "imprint-compositor"
SINGLE_CLIPS = 12  # the first of the archive show one object each
NEW_CLIPS = 4
OVERLAY = {
    "ingest": {"source": "videos"},
    "mine_pairs": {"min_clips_per_split": 1, "min_pairs_per_split": 4, "split_share": {"val": 0.15, "test": 0.15}},
    "evaluate": {"max_cases": 24, "levels": ["box"], "held_out_pairs": 8, "bootstrap_samples": 500},
}
# Steps of stage 2. The gate sees no more than what they make of the model: after 3 the hole is noise, after 60 a smooth
# fill. More is no help here: 400 steps lost to 30 in SSIM and shadow (a blur is hard to beat), and the gate said so.
FIRST, BETTER, WORSE = 3, 60, 2
PREDICT = """
import sys, mlflow, pandas as pd
from imprint.serving.pictures import build_example
model = mlflow.pyfunc.load_model("models:/imprint-compositor@champion")
row = build_example("object", "background", "mask")
image = model.predict(pd.DataFrame([row]), params={"steps": 2, "seed": 1})["image"][0]
sys.stdout.buffer.write(image)
"""


class Operation:
    """The project, its servers, and what the drill asks of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = build_environment(root, **up(root, prefect_port=find_port(), mlflow_port=find_port()))
        os.environ["MLFLOW_TRACKING_URI"] = self.environment["MLFLOW_TRACKING_URI"]
        self.client = open_store(root)[0]

    def deploy(self, deployment: str, **parameters: Any) -> str:
        """Run a deployment to its end; the name of its final state."""
        start_s = time.monotonic()
        options = [part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")]
        command = ["prefect", "deployment", "run", deployment, "--watch", *options]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        begun = {"flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}}  # not what the schedule plans
        (run,) = self.ask("flow_runs", {"sort": "START_TIME_DESC", "limit": 1, **begun, **named(deployment)})
        print(f"{deployment}: {run['state_name']} after {time.monotonic() - start_s:.0f} s", flush=True)
        if run["state_name"] not in ("Completed", "Cancelled"):
            print(done.stdout[-3000:] + done.stderr[-3000:] + self.read_logs(run["id"]))
        return run["state_name"]

    def ask(self, what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        url = f"{self.environment['PREFECT_API_URL']}/{what}/filter"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request, timeout=30).read())
        return answer["events"] if what == "events" else answer

    def read_logs(self, run_id: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(entry["message"] for entry in self.ask("logs", body))[-4000:]

    def find_promotions(self) -> list[str]:
        """Final states of the runs that an event has started, once none is on its way."""
        deadline_s = time.monotonic() + 240
        while True:
            runs = self.ask("flow_runs", named("promote/on-demand"))
            waiting = [run for run in runs if run["state_type"] in ("SCHEDULED", "PENDING", "RUNNING")]
            if not waiting or time.monotonic() > deadline_s:
                return [run["state_name"] for run in runs]
            time.sleep(2)

    def wait_for_promotions(self, number: int) -> None:
        """An event is acted on some seconds after the run that sent it has ended."""
        deadline_s = time.monotonic() + 240
        while len(self.find_promotions()) < number and time.monotonic() < deadline_s:
            time.sleep(2)
        expect("promotions started by events", self.find_promotions(), ["Completed"] * number)

    def alias(self, alias: str) -> str | None:
        found = self.client.search_model_versions(f"name='{NAME}'")
        versions = [self.client.get_model_version(NAME, str(version.version)) for version in found]
        return next((str(version.version) for version in versions if alias in version.aliases), None)

    def tags(self, version: str) -> dict[str, str]:
        return self.client.get_model_version(NAME, version).tags

    def serve(self) -> str:
        """Digest of what the champion answers, loaded as a stranger would."""
        command = [sys.executable, "-c", PREDICT]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return hashlib.sha256(done.stdout).hexdigest()

    def tip(self, branch: str) -> str:
        return run(self.root, "git", "rev-parse", branch)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        root = build_project(Path(folder))
        try:
            operation = Operation(root)
            play(operation, Path(folder) / "inbox")
        finally:
            ended = down(root)
            print(f"ended: {', '.join(ended)}")
        expect("services left", find_running(root), [])
    print("Two weeks went as they should.")


def play(operation: Operation, inbox: Path) -> None:
    """The story, day by day."""
    expect("first night", operation.deploy("prepare-data/nightly"), "Completed")
    expect("retrain 1", operation.deploy("retrain/weekly"), "Completed")
    expect("gate of version 1", operation.tags("1")["imprint.gate.reason"], "first")
    operation.wait_for_promotions(1)
    expect("champion", operation.alias("champion"), "1")
    first = operation.serve()

    set_steps(operation.root, BETTER)  # somebody commits better settings
    before = operation.tip(DATA_BRANCH)
    expect("second night", operation.deploy("prepare-data/nightly", inbox=str(inbox)), "Completed")
    expect("the data branch grew", operation.tip(DATA_BRANCH) != before, True)
    expect("retrain 2", operation.deploy("retrain/weekly"), "Completed")
    expect(
        "clips in the clone",
        len(list((operation.root / CLONES / "weekly/videos").glob("*.mp4"))),
        SINGLE_CLIPS + NEW_CLIPS,
    )
    print({key: value for key, value in operation.tags("2").items() if "gate" in key})
    expect("gate of version 2", operation.tags("2")["imprint.gate.outcome"], "promote")
    operation.wait_for_promotions(2)
    expect("champion", operation.alias("champion"), "2")
    better = operation.serve()
    expect("the served model changed", better != first, True)

    set_steps(operation.root, WORSE)  # somebody commits a mistake
    expect("retrain 3", operation.deploy("retrain/weekly"), "Completed")
    print({key: value for key, value in operation.tags("3").items() if "gate" in key})
    expect("gate of version 3", operation.tags("3")["imprint.gate.outcome"], "keep")
    expect("challenger", operation.alias("challenger"), "3")
    time.sleep(15)
    operation.wait_for_promotions(2)
    expect("champion", operation.alias("champion"), "2")
    expect("the served model stays", operation.serve() == better, True)

    expect("rollback", operation.deploy("rollback/on-demand", reason="the colours are off"), "Completed")
    expect("champion", operation.alias("champion"), "1")
    expect("the served model is the first again", operation.serve() == first, True)
    expect("evaluate", operation.deploy("evaluate/on-demand", version=2), "Completed")

    check_traces(operation)


def check_traces(operation: Operation) -> None:
    """What the weeks left in Prefect, MLflow and Git."""
    runs = operation.ask("flow_runs", {})
    expect("states", {run["state_name"] for run in runs if run["state_name"] != "Scheduled"}, {"Completed"})
    keys = {artifact["key"] for artifact in operation.ask("artifacts", {})}
    wanted = {"stage-times", "left-out", "evaluation", "gate", "gate-report", "evaluation-report", "mlflow-runs"}
    expect("artifacts missing", wanted - keys, set())
    body = {"filter": {"event": {"prefix": ["imprint."]}, "occurred": {"since": "2020-01-01T00:00:00Z"}}}
    events = sorted(event["event"] for event in operation.ask("events", body))
    # the data set changed in both nights; the clone finds the shards in its lock file or makes them known to it
    expect("models registered", events.count("imprint.model.registered"), 3)
    expect("data set changed", events.count("imprint.dataset.changed") >= 2, True)
    experiment = open_store(operation.root)[1]
    statuses = {run.info.status for run in operation.client.search_runs([experiment])}
    expect("MLflow runs", statuses, {"FINISHED"})
    log = run(operation.root, "git", "log", "--first-parent", "--format=%s", RETRAIN_BRANCH)
    print(log)
    committed = run(operation.root, "git", "ls-tree", "-r", "--name-only", RETRAIN_BRANCH).splitlines()
    expect("committed", {"dvc.lock", "metrics/evaluation.json", "videos.dvc"} <= set(committed), True)
    expect("the user's tree", run(operation.root, "git", "status", "--porcelain", "params.yaml", "flows"), "")


def build_project(folder: Path) -> Path:
    """A clone as a user would have it: own videos as a data set, a DVC remote, settings committed; and an inbox."""
    overlay = folder / "drill.yaml"
    smoke = yaml.safe_load(Path("params/smoke.yaml").read_text())
    overlay.write_text(yaml.safe_dump({name: smoke.get(name, {}) | OVERLAY.get(name, {}) for name in smoke | OVERLAY}))
    root = make_workspace(overlay, folder=folder / "project")
    (root / ".dvc" / "config.local").unlink()
    unpack(Path("demo") / "assets" / ARCHIVE.name, folder / "raw")
    clips = sorted((folder / "raw" / "clips").glob("*.mp4"))[: SINGLE_CLIPS + NEW_CLIPS]
    for place, chosen in (("project/videos", clips[:SINGLE_CLIPS]), ("inbox", clips[SINGLE_CLIPS:])):
        (folder / place).mkdir()
        for clip in chosen:
            shutil.copy(clip, folder / place)
    run(root, "git", "init", "--quiet", "--initial-branch", "main")
    for key, value in (("user.name", "drill"), ("user.email", "drill@localhost")):
        run(root, "git", "config", key, value)
    run(root, "dvc", "remote", "add", "--default", "store", str(folder / "remote"))
    run(root, "dvc", "add", "videos")
    run(root, "git", "add", "--all")
    set_steps(root, FIRST)
    return root


def set_steps(root: Path, steps: int) -> None:
    """Commit other settings of stage 2."""
    values = yaml.safe_load((root / "params.yaml").read_text())
    values["train_compositor"]["max_steps"] = steps
    values["train_compositor"]["warmup_steps"] = min(steps, 5)
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    run(root, "git", "commit", "--quiet", "--all", "--message", f"{steps} steps of stage 2")


def named(deployment: str) -> dict[str, Any]:
    flow, name = deployment.split("/")
    return {"flows": {"name": {"any_": [flow]}}, "deployments": {"name": {"any_": [name]}}}


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, env=build_environment(root), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def expect(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise SystemExit(f"{what}: {found}, not {wanted}")
    print(f"{what}: {found}", flush=True)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
