"""Where a run comes from: the git commit, whether the tree was changed, and the DVC stage."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def read_git_tags(root: Path) -> dict[str, str]:
    """`mlflow.source.git.commit` and `git.dirty` (changes of tracked files); empty outside a repository."""
    commit = _run_git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _run_git(root, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if changes else "false"}


def read_orchestration_tags(stage: str) -> dict[str, str]:
    """`dvc.stage`, and the Prefect run if the runner of `flows/` started the stage."""
    tags = {"dvc.stage": os.environ.get("DVC_STAGE") or stage}
    if flow_run := os.environ.get("IMPRINT_FLOW_RUN_ID"):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def _run_git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
