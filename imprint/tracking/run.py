"""The tracker that a stage sees. It never blocks a step: MLflow is fed by a thread of its own, from a bounded queue."""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from imprint.tracking.mlflow_run import MlflowRun, RunSpec

METRICS_FILE = "metrics.jsonl"
_MAX_QUEUED = 10_000
_FLUSH_S = 120.0  # at the end of a finished run; a large model may still be on its way
_FLUSH_INTERRUPTED_S = 8.0  # an orchestrator kills what does not end in about 20 s
Job = Callable[[MlflowRun], None]


@contextmanager
def start_run(
    *,
    stage: str,
    key: str,
    work_dir: Path,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    root: Path = Path("."),
) -> Iterator[Tracker]:
    """Track one stage's run; `inputs` is path => digest. The same `work_dir` continues the same MLflow run.

    An MLflow that fails is a warning on standard error, and the stage goes on. An exception in the body marks the run
    as failed, an interrupt as killed; both pass through.
    """
    spec = RunSpec(stage, key, params, inputs, root.resolve(), (work_dir / "mlflow_run.json").resolve())
    tracker = Tracker(spec, work_dir / METRICS_FILE)
    status, flush_s = "FINISHED", _FLUSH_S
    try:
        yield tracker
    except (KeyboardInterrupt, SystemExit):
        status, flush_s = "KILLED", _FLUSH_INTERRUPTED_S
        raise
    except BaseException:
        status, flush_s = "FAILED", _FLUSH_INTERRUPTED_S
        raise
    finally:
        tracker.close(status, flush_s)


class Tracker:
    """Logs to `metrics.jsonl` at once and to MLflow later. Made by `start_run`."""

    def __init__(self, spec: RunSpec, metrics_path: Path) -> None:
        self._file = _open_jsonl(metrics_path)
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._num_dropped = 0
        self._thread = threading.Thread(target=_feed_mlflow, args=(spec, self._jobs), daemon=True, name="mlflow")
        self._thread.start()
        self._jobs.put(lambda run: None)  # opens the run now, not at the first entry

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """One line `{"step": ..., name: value, ...}`; a value that is not finite becomes null there."""
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        time_ms = int(time.time() * 1000)
        self._put(lambda run: run.log_metrics(values, step, time_ms))

    def log_file(self, path: Path, *, folder: str = "") -> None:
        """Log a file (a sample picture) into a folder of the run's artifacts. It must stay until the run ends."""
        resolved = path.resolve()
        self._put(lambda run: run.log_file(resolved, folder))

    def log_model(
        self, *, kind: Literal["encoder", "compositor"], directory: Path, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Log final weights (an exported folder) as a logged model that carries `metrics`."""
        resolved, values = directory.resolve(), {name: float(value) for name, value in (metrics or {}).items()}
        self._put(lambda run: run.log_model(kind, resolved, values))

    def close(self, status: str, flush_s: float) -> None:
        """Wait at most `flush_s` seconds for MLflow."""
        self._file.close()
        self._jobs.put(lambda run: run.finish(status))
        self._jobs.put(None)
        self._thread.join(flush_s)
        if self._thread.is_alive():
            _warn(f"gave up after {flush_s:.0f} s with about {self._jobs.qsize()} entries unsent")
        if self._num_dropped:
            _warn(f"was too slow: {self._num_dropped} entries are in {METRICS_FILE} alone")

    def _put(self, job: Job) -> None:
        if self._jobs.qsize() < _MAX_QUEUED:
            self._jobs.put(job)
        else:
            self._num_dropped += 1


def _feed_mlflow(spec: RunSpec, jobs: queue.Queue[Job | None]) -> None:
    """The thread's body: the first failure is reported and ends the logging, and the queue is drained to its end."""
    run: MlflowRun | None = None
    broken = False
    for job in iter(jobs.get, None):
        if broken:
            continue
        try:
            run = run or MlflowRun(spec)
            job(run)
        except Exception as error:
            broken = True
            _warn(f"failed and is left out from here on: {' '.join(str(error).split())[:300]}")


def _open_jsonl(path: Path) -> IO[str]:
    """Open for appending, without the half line that a killed process may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        data = path.read_bytes()
        path.write_bytes(data[: data.rfind(b"\n") + 1])
    return path.open("a")


def _warn(message: str) -> None:
    print(f"warning: MLflow {message}", file=sys.stderr, flush=True)
