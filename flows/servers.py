"""`make up` and `make down`: Prefect, MLflow and one worker per pool on loopback, their data in the project.

What was started is noted in `.prefect/services.json` with each process's id and start time, so that `down` ends these
processes and no other, even when an id has been given to another process since.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.prefect_api import close_orphans
from flows.processes import build_environment
from imprint.core.errors import InputError
from imprint.core.files import write_json_atomic
from imprint.core.outside import load_json, reach_loopback_directly
from imprint.tracking.store import build_sqlite_uri

FOLDER = Path(".prefect")
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
POOLS = {"cpu": 4, "gpu": 1}  # work pool => runs at a time: promotion must not wait for a night's data
BACKEND_VARIABLE = "MLFLOW_BACKEND_STORE_URI"  # MLflow's own; a database in the place of the project's mlflow.db
_START_S, _END_S = 300.0, 30.0
_HOST = "127.0.0.1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a company's proxy knows nothing of loopback


@dataclass(frozen=True)
class Service:
    """A process that `up` started."""

    name: str
    pid: int
    started_s: float  # its start time by the clock, which tells it from another process with its id
    port: int = 0


def up(root: Path, *, prefect_port: int = PREFECT_PORT, mlflow_port: int = MLFLOW_PORT) -> dict[str, str]:
    """Start what does not run yet, make pools and deployments; the environment that reaches the servers.

    `InputError` if a port is taken by something else or a server does not come up; what had been started then ends.
    """
    root = root.resolve()
    reach_loopback_directly()  # for the servers and workers, which ask each other
    running = {service.name: service for service in find_running(root)}
    ports = {"prefect": prefect_port, "mlflow": mlflow_port}
    ports |= {name: running[name].port for name in ports if name in running}
    for name in ports.keys() - running.keys():
        _require_free(name, ports[name])
    settings = describe_environment(root, **ports)
    try:
        _start_all(root, settings, ports=ports, running=running)
    except BaseException:
        if not running:
            down(root)
        raise
    return settings


def down(root: Path) -> list[str]:
    """End what `up` started, runs and workers first, with all that they started; the names of what was running."""
    services = find_running(root)
    workers, servers = (
        [psutil.Process(one.pid) for one in services if bool(one.port) == kind] for kind in (False, True)
    )
    _end([run for worker in workers for run in worker.children()])  # their stages save; the servers are told
    _end(workers)
    _end(servers)
    (root / FOLDER / "services.json").unlink(missing_ok=True)
    return [service.name for service in services]


def find_running(root: Path) -> list[Service]:
    """The services of the project that are alive."""
    path = root / FOLDER / "services.json"
    noted = [Service(**entry) for entry in load_json(path)] if path.is_file() else []
    return [service for service in noted if _is_alive(service)]


def find_environment(root: Path) -> dict[str, str]:
    """The environment that reaches the project's own servers; empty if they do not run."""
    ports = {service.name: service.port for service in find_running(root) if service.port}
    return describe_environment(root.resolve(), **ports) if ports.keys() >= {"prefect", "mlflow"} else {}


def describe_environment(root: Path, *, prefect: int, mlflow: int) -> dict[str, str]:
    """For the servers, the workers and whoever talks to them."""
    return {
        "PREFECT_HOME": str(root / FOLDER),
        "PREFECT_API_URL": f"http://{_HOST}:{prefect}/api",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_TRACKING_URI": f"http://{_HOST}:{mlflow}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "IMPRINT_HOME": str(root),
    }


def _start_all(
    root: Path, settings: Mapping[str, str], *, ports: Mapping[str, int], running: Mapping[str, Service]
) -> None:
    environment = build_environment(root, **settings)
    if not os.environ.get(BACKEND_VARIABLE):
        _make_store(root)
    for name, command in list_servers(root, ports).items():
        if name not in running:
            _start(root, name, command, environment=environment, port=ports[name])
    health = {"prefect": f"{settings['PREFECT_API_URL']}/health", "mlflow": f"{settings['MLFLOW_TRACKING_URI']}/health"}
    for name, url in health.items():
        _wait_for(root, name, url)
    if "prefect" not in running:
        close_orphans(settings["PREFECT_API_URL"])
    for pool in POOLS:
        _prefect(root, environment, "work-pool", "create", pool, "--type", "process", "--overwrite")
    _prefect(root, environment, "--no-prompt", "deploy", "--all")
    for pool, limit in POOLS.items():
        if f"worker-{pool}" not in running:
            command = ["prefect", "worker", "start", "--pool", pool, "--limit", str(limit), "--name", pool]
            _start(root, f"worker-{pool}", command, environment=environment)


def list_servers(root: Path, ports: Mapping[str, int]) -> dict[str, list[str]]:
    """The command of each. MLflow's database is the project's `mlflow.db`, unless the environment names another."""
    prefect = ["prefect", "server", "start", "--host", _HOST, "--port", str(ports["prefect"])]
    mlflow = ["mlflow", "server", "--host", _HOST, "--port", str(ports["mlflow"]), "--workers", "1"]
    mlflow += ["--artifacts-destination", str(root / "mlruns")]
    if not os.environ.get(BACKEND_VARIABLE):  # else MLflow reads it itself, and no password stands in a command line
        mlflow += ["--backend-store-uri", build_sqlite_uri(root)]
    return {"prefect": prefect, "mlflow": mlflow}


def _make_store(root: Path) -> None:
    """The project's own, by its file: its artifacts are then found with and without the server."""
    from imprint.tracking.store import open_store

    inherited = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        open_store(root)
    finally:
        if inherited is not None:
            os.environ["MLFLOW_TRACKING_URI"] = inherited


def _start(root: Path, name: str, command: list[str], *, environment: Mapping[str, str], port: int = 0) -> None:
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    service = Service(name, process.pid, psutil.Process(process.pid).create_time(), port)
    write_json_atomic(folder / "services.json", [asdict(one) for one in (*find_running(root), service)])


def _wait_for(root: Path, name: str, url: str) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and any(service.name == name for service in find_running(root)):
        try:
            _DIRECT.open(url, timeout=5).read()
            return
        except OSError:
            time.sleep(0.3)
    raise InputError(f"the {name} server did not come up; see {root / FOLDER / f'{name}.log'}")


def _prefect(root: Path, environment: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(["prefect", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        told = (done.stdout + done.stderr).strip()[-800:]
        raise InputError(f"prefect {' '.join(arguments)} failed: {told}")


def _require_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise InputError(
                f"port {port} is taken by another program; give {name} another one: "
                f"make up {name.upper()}_PORT={port + 1}"
            ) from None


def _is_alive(service: Service) -> bool:
    try:
        process = psutil.Process(service.pid)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - service.started_s) < 1.0
    except psutil.NoSuchProcess:
        return False


def _end(processes: list[psutil.Process]) -> None:
    """SIGTERM to them, and after a while SIGKILL to them and to all that they had started, in whatever session."""
    family: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
            process.terminate()
    psutil.wait_procs(processes, timeout=_END_S)
    _, left = psutil.wait_procs([*processes, *family], timeout=3.0)
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=5.0)
