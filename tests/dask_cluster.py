"""A Dask scheduler and workers, processes of their own on loopback, and a project of the data stages for them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from imprint.core.params import Params
from tests.toy_project import PROGRAMS, REPOSITORY, end

LOOPBACK = ("--host", "127.0.0.1", "--port", "0")
STAGES = ("ingest", "extract_frames", "segment_objects")


@dataclass(frozen=True)
class Cluster:
    """`address` of the scheduler, and the workers."""

    address: str
    workers: tuple[subprocess.Popen, ...]


@contextmanager
def start_cluster(folder: Path, environment: Mapping[str, str], num_workers: int = 2) -> Iterator[Cluster]:
    """`num_workers` workers of one thread each; logs in `folder`."""
    contact = folder / "scheduler.json"
    processes = [_start(["scheduler", *LOOPBACK, "--scheduler-file", str(contact)], folder, "scheduler", environment)]
    try:
        address = _read_address(contact)
        names = [f"worker_{number}" for number in range(num_workers)]
        processes += [start_worker(address, folder, name, environment) for name in names]
        yield Cluster(address, tuple(processes[1:]))
    finally:
        end_all(processes[::-1])


def start_worker(address: str, folder: Path, name: str, environment: Mapping[str, str]) -> subprocess.Popen:
    """Without a nanny, which would start a killed worker anew."""
    options = ["--no-nanny", "--nthreads", "1", "--local-directory", str(folder)]
    return _start(["worker", address, *options], folder, name, environment)


def end_all(processes: Iterable[subprocess.Popen]) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    for process in processes:
        end(process)
        process.wait()


def _start(arguments: list[str], folder: Path, name: str, environment: Mapping[str, str]) -> subprocess.Popen:
    command = [str(PROGRAMS / "dask"), *arguments, "--no-dashboard"]
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=log, stderr=log)


def build_data_project(root: Path, params: Params, stages: tuple[str, ...] = STAGES) -> Path:
    """The data stages of the repository's dvc.yaml, with its code taken from PYTHONPATH."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")))
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for name in stages:
        graph[name]["deps"] = [dep for dep in graph[name]["deps"] if not dep.startswith(("data_prep", "imprint"))]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: graph[name] for name in stages}}))
    return root


def _read_address(contact: Path) -> str:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if contact.is_file() and (text := contact.read_text()):
            return json.loads(text)["address"]
        time.sleep(0.1)
    raise AssertionError("the Dask scheduler did not start")
