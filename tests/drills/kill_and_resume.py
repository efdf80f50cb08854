"""Drill: `kill -9` in the middle of both trainings, then `dvc repro`; `models/` must be the undisturbed run's bytes.

`make drill` runs it on a copy of the project in a temporary folder, in a few minutes. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from flows.processes import build_environment
from flows.workspace import make_workspace
from imprint.core.files import compute_path_digest

TRAININGS = ("pretrain_encoder", "train_compositor")
UNTIL = "train_compositor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/smoke.yaml"), help="overlay of params.yaml")
    overlay = parser.parse_args().params
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        root = make_workspace(overlay, folder=Path(folder) / "project")
        assert repro(root).wait() == 0, "the undisturbed run failed"
        expected = compute_path_digest(root / "models")
        forget_models(root)
        for stage in TRAININGS:
            kill_in_the_middle(root, stage)
        assert repro(root).wait() == 0, "the run did not go on after the kill"
        found = compute_path_digest(root / "models")
    print(f"models/ undisturbed {expected}\nmodels/ killed twice {found}")
    if found != expected:
        raise SystemExit("the bytes differ")
    print("The bytes are the same.")


def repro(root: Path) -> subprocess.Popen[bytes]:
    """`dvc repro` up to the second training, started."""
    return subprocess.Popen(["dvc", "repro", UNTIL], cwd=root, env=build_environment(root))


def forget_models(root: Path) -> None:
    """Leave the data; remove the models, what DVC would bring them back from, and the work folders."""
    stages = (*TRAININGS, "freeze_encoder")
    for name in ("models", ".dvc/cache/runs", *(f"work/{stage}" for stage in stages)):
        shutil.rmtree(root / name)
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    for stage in stages:
        del lock["stages"][stage]
    (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))


def kill_in_the_middle(root: Path, stage: str) -> None:
    """Start the pipeline, wait for the stage's first checkpoint and some steps more, and end it with SIGKILL."""
    run = repro(root)
    while not list(root.glob(f"work/{stage}/*/checkpoints/*")):
        assert run.poll() is None, f"the run ended before {stage} saved anything"
        time.sleep(0.05)
    time.sleep(0.5)
    command = f"imprint {stage.replace('_', '-')}"
    for process in psutil.Process(run.pid).children(recursive=True):
        if command in " ".join(process.cmdline()):
            process.kill()
    assert run.wait() != 0, f"{stage} ended before it could be killed"
    print(f"killed {stage} in the middle", flush=True)


if __name__ == "__main__":
    main()
