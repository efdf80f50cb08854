"""Drill: a team's set-up as plain processes, and two workers in two clones that share nothing else.

PostgreSQL behind both servers and an S3 server as DVC's remote and MLflow's store, started with the commands and
settings of deploy/compose.yaml; data is prepared in one clone, the training runs in the other. `make drill-team`; needs
Debian's package postgresql. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from flows.processes import build_environment
from flows.versions import DATA_BRANCH, RETRAIN_BRANCH
from tests.drills.two_weeks import Operation, build_project, expect, find_port, run

COMPOSE = Path("deploy/compose.yaml")
SECRETS = {"POSTGRES_PASSWORD": "of-the-drill", "STORE_USER": "team", "STORE_PASSWORD": "of-the-drill"}
AWS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "of-the-drill", "AWS_DEFAULT_REGION": "us-east-1"}
POSTGRES_USER = "postgres"  # of the system: PostgreSQL refuses root


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    ports = {name: find_port() for name in ("postgres", "store", "prefect", "mlflow")}
    with tempfile.TemporaryDirectory(prefix="drill-") as name, ExitStack() as stack:
        folder = Path(name)
        first = build_project(folder)
        stack.enter_context(start_postgres(folder / "postgres", ports["postgres"]))
        store = stack.enter_context(start_store(folder, ports["store"]))
        for service in ("prefect", "mlflow"):
            stack.enter_context(start_service(service, folder, ports))
        settings = {
            "PREFECT_API_URL": f"http://127.0.0.1:{ports['prefect']}/api",
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}",
            "IMPRINT_GIT_REMOTE": "origin",
        }
        second = share(first, folder, ports["store"])
        environment = build_environment(first, **settings)
        for pool in ("cpu", "gpu"):
            run_in(first, environment, "prefect", "work-pool", "create", pool, "--type", "process")
        run_in(first, environment, "prefect", "--no-prompt", "deploy", "--all")
        for pool, clone in (("cpu", first), ("gpu", second)):
            stack.enter_context(start_worker(pool, clone, settings))
        play(Team(first, environment), second, store)
        runs = ask_postgres(ports["postgres"], "select count(*) from flow_run where state_type = 'COMPLETED'")
        print(f"completed flow runs in PostgreSQL: {runs}")
    print("Two clones worked as a team.")


class Team:
    """What the drill asks of the servers: `Operation`'s questions, without servers of its own."""

    deploy, ask, read_logs, tags, alias = (
        Operation.deploy,
        Operation.ask,
        Operation.read_logs,
        Operation.tags,
        Operation.alias,
    )

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        from imprint.tracking.store import open_store

        self.root, self.environment = root, environment
        os.environ["MLFLOW_TRACKING_URI"] = environment["MLFLOW_TRACKING_URI"]
        self.client = open_store(root)[0]


def play(team: Any, second: Path, store: Any) -> None:
    """A night in the first clone, a training in the second."""
    expect("night, first clone", team.deploy("prepare-data/nightly"), "Completed")
    expect("objects in s3://dvc", count_objects(store, "dvc") > 0, True)
    origin = run(team.root, "git", "ls-remote", "--heads", "origin")
    expect("auto/data at the Git remote", DATA_BRANCH in origin, True)
    expect("data in the second clone before", (second / "work").exists() or (second / "videos").exists(), False)

    expect("training, second clone", team.deploy("retrain/weekly"), "Completed")
    clone = second / "work/clones/weekly"
    expect("the model was made there", (clone / "models/compositor/imprint.json").is_file(), True)
    expect("clips were not computed again", (clone / "work/extract_frames").exists(), False)
    expect("models in the first clone", (team.root / "models").exists(), False)
    deadline_s = time.monotonic() + 240
    while team.alias("champion") is None and time.monotonic() < deadline_s:
        time.sleep(2)  # the event is acted on by the worker of the first clone
    expect("champion, by the event", team.alias("champion"), "1")
    expect("artifacts in s3://mlflow", count_objects(store, "mlflow") > 0, True)
    run(team.root, "git", "fetch", "--quiet", "origin", RETRAIN_BRANCH)
    third = team.root.parent / "third"
    run(
        team.root.parent,
        "git",
        "clone",
        "--quiet",
        "--branch",
        RETRAIN_BRANCH,
        str(team.root.parent / "git"),
        str(third),
    )
    shutil.copy(team.root / ".dvc/config.local", third / ".dvc/config.local")
    run(third, "dvc", "pull", "--allow-missing")
    expect("a third clone", run(third, "dvc", "repro").splitlines()[-1], "Data and pipelines are up to date.")


def share(first: Path, folder: Path, store_port: int) -> Path:
    """The bare Git remote and the second clone; DVC's remote is the S3 server."""
    run(first, "dvc", "remote", "remove", "store")
    run(first, "dvc", "remote", "add", "--default", "store", "s3://dvc/imprint")
    run(first, "dvc", "remote", "modify", "store", "endpointurl", f"http://127.0.0.1:{store_port}")
    run(first, "git", "commit", "--quiet", "--all", "--message", "The team's store")
    remote, second = folder / "git", folder / "second"
    run(first, "git", "clone", "--quiet", "--bare", str(first), str(remote))
    run(first, "git", "remote", "add", "origin", str(remote))
    run(folder, "git", "clone", "--quiet", str(remote), str(second))
    for clone in (first, second):
        for key, value in (("access_key_id", "AWS_ACCESS_KEY_ID"), ("secret_access_key", "AWS_SECRET_ACCESS_KEY")):
            run(clone, "dvc", "remote", "modify", "--local", "store", key, AWS[value])
    return second


@contextmanager
def start_postgres(folder: Path, port: int) -> Iterator[None]:
    """A cluster of its own with the databases of deploy/databases.sql."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    folder.mkdir()
    folder.parent.chmod(0o755)
    user = POSTGRES_USER if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    password = folder.parent / "password"
    password.write_text(SECRETS["POSTGRES_PASSWORD"])
    data = folder / "data"
    options: dict[str, Any] = {"user": user, "cwd": folder} if user else {"cwd": folder}
    command = [programs / "initdb", "-D", data, "-U", "imprint", "--auth=scram-sha-256", f"--pwfile={password}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
    command = [programs / "postgres", "-D", data, "-k", folder, "-p", str(port), "-h", "127.0.0.1"]
    with start(command, folder.parent / "postgres.log", dict(os.environ), **options):
        wait_until(lambda: subprocess.run([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]))
        psql(port, "-f", str(Path("deploy/databases.sql").resolve()))
        yield


@contextmanager
def start_store(folder: Path, port: int) -> Iterator[Any]:
    """moto's S3 server, with the two buckets; a client of it."""
    import boto3

    command = [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)]
    with start(command, folder / "store.log", dict(os.environ)):
        url = f"http://127.0.0.1:{port}"
        wait_for(url)
        client = boto3.client("s3", endpoint_url=url, region_name=AWS["AWS_DEFAULT_REGION"], **login())
        for bucket in ("dvc", "mlflow"):
            client.create_bucket(Bucket=bucket)
        yield client


@contextmanager
def start_service(name: str, folder: Path, ports: Mapping[str, int]) -> Iterator[None]:
    """A server as deploy/compose.yaml says, with this machine's addresses."""
    service = yaml.safe_load(COMPOSE.read_text())["services"][name]
    command = [translate(part, name, ports) for part in service["command"]]
    settings = {key: translate(value, name, ports) for key, value in service["environment"].items()}
    environment = build_environment(folder, **settings, PREFECT_HOME=str(folder / name), AWS_DEFAULT_REGION="us-east-1")
    (folder / name).mkdir()
    with start(command, folder / f"{name}.log", environment, cwd=folder / name):
        wait_for(f"http://127.0.0.1:{ports[name]}" + ("/api/health" if name == "prefect" else "/health"))
        yield


def translate(text: str, name: str, ports: Mapping[str, int]) -> str:
    """`${SECRET}`, and names and ports of containers."""
    for key, value in SECRETS.items():
        text = text.replace(f"${{{key}}}", value)
    own = {"prefect": "4200", "mlflow": "5000"}[name]
    for before, after in (("postgres:5432", ports["postgres"]), ("store:9000", ports["store"])):
        text = text.replace(before, f"127.0.0.1:{after}")
    return text.replace("0.0.0.0", "127.0.0.1").replace(own, str(ports[name]))


@contextmanager
def start_worker(pool: str, clone: Path, settings: Mapping[str, str]) -> Iterator[None]:
    home = str(clone.parent / f"worker-{pool}")
    environment = build_environment(clone, **{**settings, "IMPRINT_HOME": str(clone), "PREFECT_HOME": home})
    with start(["prefect", "worker", "start", "--pool", pool], clone.parent / f"{pool}.log", environment, cwd=clone):
        yield


@contextmanager
def start(command: list[Any], log: Path, environment: dict[str, str], **options: Any) -> Iterator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, **options)
    try:
        yield
    except BaseException:
        print(f"{shlex.join(map(str, command))[:200]}:\n{log.read_text()[-2500:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    def answers() -> subprocess.CompletedProcess[str]:
        try:
            urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            return subprocess.CompletedProcess(url, 1)
        return subprocess.CompletedProcess(url, 0)

    wait_until(answers)


def wait_until(check: Any, timeout_s: float = 300.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while check().returncode != 0:
        assert time.monotonic() < deadline_s, "a server did not come up"
        time.sleep(0.5)


def psql(port: int, *arguments: str) -> str:
    command = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "imprint", "-v", "ON_ERROR_STOP=1", "-qAt", *arguments]
    environment = os.environ | {"PGPASSWORD": SECRETS["POSTGRES_PASSWORD"], "PGDATABASE": "postgres"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def ask_postgres(port: int, query: str) -> str:
    return psql(port, "-d", "prefect", "-c", query)


def login() -> dict[str, str]:
    names = ("aws_access_key_id", "aws_secret_access_key")
    return {name: AWS[name.upper()] for name in names}


def count_objects(store: Any, bucket: str) -> int:
    pages = store.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return sum(len(page.get("Contents", ())) for page in pages)


def run_in(root: Path, environment: Mapping[str, str], *command: str) -> None:
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    main()
