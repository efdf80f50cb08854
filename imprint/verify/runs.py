"""The actions themselves: real commands in processes of their own, and what they say of time and memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.core.errors import InputError
from imprint.core.keys import PACKAGES_ROOT
from imprint.verify.project import INPUTS, STEPS, STOP_AT, Project

COMPOSITE_SEED = 0
_GIB = 2**30
_WARM_UP_STEPS = 3  # of a process: not timed
_POLL_S = 0.01
_TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Seen:
    """memory_gib: of the GPU where there is one, else of the process."""

    seconds: float
    memory_gib: float
    on_gpu: bool
    images_per_s: float = 0.0

    @property
    def memory(self) -> str:
        return f"{self.memory_gib:.2f} GiB {'GPU memory' if self.on_gpu else 'main memory'}"


def load_and_composite(project: Project) -> tuple[Seen, Seen]:
    """Load the weights as stage 1 does, and make `composite.png` with that model by `imprint composite`'s own code."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        loaded = apart.submit(_load, project).result()
        return loaded, apart.submit(_composite, project).result()


def _load(project: Project) -> Seen:
    from imprint.models import save_model
    from imprint.training.pretrain_stage import build_start

    started_s = time.monotonic()
    model, _ = build_start(project.params.pretrain_encoder, project.root)
    seconds = time.monotonic() - started_s
    save_model(model, project.root / "models" / "start", stage="verify", extra={})
    return Seen(seconds=seconds, memory_gib=_read_peak_rss_gib(), on_gpu=False)


def _composite(project: Project) -> Seen:
    import torch

    from imprint.inference.command import composite_files

    started_s = time.monotonic()
    composite_files(
        [INPUTS / "object.png"],
        INPUTS / "background.png",
        mask_path=INPUTS / "mask.png",
        output_path=project.root / "composite.png",
        level="box",
        model="models/start",
        seed=COMPOSITE_SEED,
        steps=None,
        guidance=None,
        draws=None,
        root=project.root,
    )
    seconds = time.monotonic() - started_s
    if torch.cuda.is_available():
        return Seen(seconds=seconds, memory_gib=torch.cuda.max_memory_reserved() / _GIB, on_gpu=True)
    return Seen(seconds=seconds, memory_gib=_read_peak_rss_gib(), on_gpu=False)


def run_interrupted(project: Project) -> tuple[Seen, int]:
    """Stage 1, ended by SIGTERM once it has saved its tenth step, and called again: what was seen, where it stopped.

    `InputError` unless it stopped there with the signal's exit code, went on from there and made every step once.
    """
    stage = "pretrain_encoder"
    code, first_s, first_gib = run_stage(project, stage, log="stage1-stopped", stop=True)
    checkpoints = sorted(project.root.glob(f"work/{stage}/*/checkpoints/step-*.json"))
    step = int(checkpoints[-1].stem.split("-")[1]) if checkpoints else 0
    if code != 128 + signal.SIGTERM or not STOP_AT <= step < STEPS:
        raise InputError(f"stage 1 did not stop when it was told to (exit code {code}, saved step {step}); run again")
    _, seconds, gib = run_stage(project, stage, log="stage1-resumed")
    steps = [entry["step"] for entry in read_metrics(project, stage)]
    if steps != list(range(1, STEPS + 1)):
        raise InputError(
            f"stage 1 stopped at step {step} and went on with steps {steps[step:]}; see {project.root}/work"
        )
    return read_seen(project, stage, seconds=first_s + seconds, rss_gib=max(first_gib, gib)), step


def run_stage(project: Project, stage: str, *, log: str, stop: bool = False) -> tuple[int, float, float]:
    """`python -m imprint <stage>` in the project: exit code, seconds, peak memory of the process in GiB.

    stop: send SIGTERM when the checkpoint of step 10 is there. `InputError` with the end of its log if it fails.
    """
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGES_ROOT), os.environ.get("PYTHONPATH")]))
    path = project.root / f"{log}.log"
    started_s = time.monotonic()
    with path.open("w") as file:
        command = [sys.executable, "-m", "imprint", stage.replace("_", "-")]
        process = subprocess.Popen(command, cwd=project.root, env=environment, stdout=file, stderr=file)
        try:
            code, usage = _wait(process.pid, project.root if stop else None, stage)
        except BaseException:
            process.terminate()
            raise
    if code != 0 and not (stop and code == 128 + signal.SIGTERM):
        tail = " / ".join(line.strip() for line in path.read_text().splitlines()[-_TAIL_LINES:] if line.strip())
        raise InputError(f"{stage} ended with exit code {code}; the whole of it is in {path}: ... {tail[-600:]}")
    return code, time.monotonic() - started_s, usage * 1024 / _GIB


def _wait(pid: int, stopped_in: Path | None, stage: str) -> tuple[int, int]:
    """Exit code and peak resident kilobytes of a child."""
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return (code if code >= 0 else 128 - code), usage.ru_maxrss
        if stopped_in is not None and list(stopped_in.glob(f"work/{stage}/*/checkpoints/step-{STOP_AT:08d}.json")):
            os.kill(pid, signal.SIGTERM)
            stopped_in = None
        time.sleep(_POLL_S)


def read_seen(project: Project, stage: str, *, seconds: float, rss_gib: float) -> Seen:
    """What the stage logged of itself: images per second (median of its steps) and the GPU's memory in use."""
    entries = read_metrics(project, stage)
    speeds = [entry["images_per_s"] for entry in entries[_WARM_UP_STEPS:]]
    on_gpu = [value for entry in entries for key, value in entry.items() if key.startswith("system/gpu_0_memory_usage")]
    return Seen(
        seconds=seconds,
        images_per_s=statistics.median(speeds),
        memory_gib=max(on_gpu) / 1024 if on_gpu else rss_gib,
        on_gpu=bool(on_gpu),
    )


def read_metrics(project: Project, stage: str) -> list[dict[str, Any]]:
    """Step and metrics of the steps that the newest run of a stage has logged, validation apart."""
    files = sorted(project.root.glob(f"work/{stage}/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    entries = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
    metrics = [{"step": entry["step"], **entry["metrics"]} for entry in entries if "metrics" in entry]
    return [entry for entry in metrics if "images_per_s" in entry]


def _read_peak_rss_gib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
