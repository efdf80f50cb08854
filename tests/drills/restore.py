"""Drill: a project that runs is backed up and lost, and comes back as docs/operations.md says, with its history.

`make drill-restore`. One small training; not collected by pytest.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from flows.servers import down
from flows.versions import RETRAIN_BRANCH
from tests.drills.two_weeks import Operation, build_project, expect, run

SERVERS = ("mlflow.db*", "mlruns", ".prefect/prefect.db*")  # as in the manual; SQLite keeps the last minutes in `-wal`


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        folder = Path(name)
        root, fork = build_project(folder), folder / "fork.git"
        run(folder, "git", "init", "--quiet", "--bare", "--initial-branch", "main", str(fork))
        run(root, "git", "remote", "add", "origin", str(fork))
        try:
            operation = work(root)
            before = describe(operation)
            down(root)
            back_up(root, folder / "servers.tgz")
            root.rename(folder / "lost")
            restore(root, fork, folder / "servers.tgz")
            expect("restored", describe(Operation(root)), before)
        finally:
            down(root)
    print("It came back as it was.")


def work(root: Path) -> Operation:
    """A model in service, and its lock file on the branch that people work on."""
    operation = Operation(root)
    expect("retraining", operation.deploy("retrain/weekly"), "Completed")
    operation.wait_for_promotions(1)
    run(root, "git", "merge", "--quiet", "--no-edit", RETRAIN_BRANCH)
    run(root, "dvc", "checkout", "--allow-missing")
    return operation


def describe(operation: Operation) -> dict[str, object]:
    """What must be the same afterwards."""
    done = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    return {
        "champion": operation.alias("champion"),
        "served": operation.serve(),
        "gate": operation.tags("1")["imprint.gate.explanation"],
        "runs": sorted(one["name"] for one in operation.ask("flow_runs", done)),
        "repro": run(operation.root, "dvc", "repro").splitlines()[-1],
    }


def back_up(root: Path, archive: Path) -> None:
    run(root, "dvc", "push", "--run-cache")
    run(root, "git", "push", "--quiet", "origin", "--all")
    found = sorted(str(path.relative_to(root)) for pattern in SERVERS for path in root.glob(pattern))
    run(root, "tar", "czf", str(archive), *found)


def restore(root: Path, fork: Path, archive: Path) -> None:
    run(fork.parent, "git", "clone", "--quiet", str(fork), str(root))
    run(root, "tar", "xzf", str(archive))
    run(root, "dvc", "pull", "--run-cache", "--allow-missing")
    shutil.rmtree(root.parent / "lost")  # nothing may come from there


if __name__ == "__main__":
    main()
