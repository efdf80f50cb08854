"""What `make demo` does: `dvc repro`, registration, and a look at the result. Needs no Prefect and no server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from flows.preflight import find_git_problem
from flows.processes import build_environment
from flows.workspace import make_workspace
from imprint.core.errors import InputError
from imprint.core.stage import read_dvc_digests

REPORT, DATA_REPORT = Path("reports/evaluation"), Path("reports/data")


def run_demo(params: Path | None = None, root: Path = Path(".")) -> None:
    """Run the whole pipeline at `root`, or in a copy of it with the keys of `params` replaced."""
    if problem := find_git_problem(root):
        raise InputError(problem)
    if params is not None:
        _run_in(make_workspace(params, root))
        return
    start_s = time.monotonic()
    run_dvc(root)
    register(root)
    print_results(root)
    print(f"Done in {time.monotonic() - start_s:.0f} s.")


def run_dvc(root: Path, *targets: str) -> None:
    """`dvc repro` of all stages or of some, in this terminal: Ctrl-C reaches the stage, which saves and ends."""
    read_dvc_digests(root)  # a half-merged lock is told before DVC tells it at length
    done = subprocess.run(["dvc", "repro", *targets], cwd=root, env=build_environment(root))
    if done.returncode != 0:
        raise InputError("dvc repro did not finish; the reason stands above, and the same command continues the run")


def register(root: Path) -> None:
    """Register both models and say what came of it."""
    from flows.registry import register_all
    from flows.relocation import relocate_store

    if count := relocate_store(root):
        print(f"The project was moved: {count} places in mlflow.db now name this folder")
    for model in register_all(root):
        print(model.describe())


def print_results(root: Path) -> None:
    """The tables of metrics and where the pictures are."""
    from imprint.evaluation.table import print_table

    print_table(root / "metrics" / "evaluation.json")
    print(f"The data set: {(root / DATA_REPORT / 'index.html').resolve()}")
    print(f"Report page: {(root / REPORT / 'index.html').resolve()}")
    print(f"A composite: {(root / REPORT / 'composite.png').resolve()}")


def _run_in(folder: Path) -> None:
    """The copy runs its own code: a fresh interpreter in its folder finds that first."""
    print(f"Running in {folder}", flush=True)
    done = subprocess.run([sys.executable, "-m", "flows", "demo"], cwd=folder, env=dict(os.environ))
    if done.returncode != 0:
        raise SystemExit(done.returncode)
