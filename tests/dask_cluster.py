"""A Dask scheduler and workers, processes of their own on loopback, and a project of the data stages for them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from imprint.core.params import Params
from tests.toy_project import PROGRAMS, REPOSITORY, end

STAGES = ("ingest", "extract_frames", "segment_objects")


@dataclass(frozen=True)
class Cluster:
    """`address` of the scheduler, and the processes."""

    address: str
    scheduler: subprocess.Popen
    workers: tuple[subprocess.Popen, ...]


@contextmanager
def start_cluster(folder: Path, root: Path, environment: Mapping[str, str], num_workers: int = 2) -> Iterator[Cluster]:
    """Workers of one thread each without a nanny, which would start a killed one anew; they run in `root`."""
    contact = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> subprocess.Popen:
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            command = [str(PROGRAMS / "dask"), *arguments, "--no-dashboard"]
            process = subprocess.Popen(command, cwd=root, env=dict(environment), stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(end, process)
            return process

        options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(contact))
        scheduler = start("scheduler", "scheduler", *options)
        address = _read_address(contact)
        options = ("--no-nanny", "--nthreads", "1", "--local-directory", str(folder))
        workers = [start(f"worker_{number}", "worker", address, *options) for number in range(num_workers)]
        yield Cluster(address, scheduler, tuple(workers))


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
