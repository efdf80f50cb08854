"""The tracker that a stage sees. It writes to the run's journal and never waits: a thread of its own feeds MLflow from
there. What a server that is away has not got is sent when it is back, by this run or by the project's next one."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from imprint.tracking.journal import METRICS_FILE, lock_journal, open_journal, read_journal
from imprint.tracking.mlflow_run import RECORD_FILE, MlflowRun, count_unsent, describe_run, shorten, warn

_FLUSH_S = 120.0  # at the end of a finished run; a large model may still be on its way
_FLUSH_INTERRUPTED_S = 8.0  # an orchestrator kills what does not end in about 20 s
_RETRY_S = 15.0
SEND_COMMAND = "python -m imprint send-metrics"


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
    work_dir, root = work_dir.resolve(), root.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    describe_run(work_dir, stage=stage, key=key, params=params, inputs=inputs, root=root)
    tracker = Tracker(work_dir, root)
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

    def __init__(self, work_dir: Path, root: Path) -> None:
        self._work_dir = work_dir
        self._file = open_journal(work_dir / METRICS_FILE)
        self._logged = _list_logged(work_dir)
        self._wake, self._closing = threading.Event(), threading.Event()
        arguments = (work_dir, root, self._wake, self._closing)
        self._thread = threading.Thread(target=_feed_mlflow, args=arguments, daemon=True, name="mlflow")
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """One entry; a value that is not finite becomes null. What an earlier process has logged at the step, before it
        was stopped and this one repeated it, is not logged again."""
        new = {name: float(value) for name, value in metrics.items() if (name, step) not in self._logged}
        if new:
            values = {name: value if math.isfinite(value) else None for name, value in new.items()}
            self._write({"step": step, "metrics": values})

    def log_file(self, path: Path, *, folder: str = "") -> None:
        """Log a file (a sample picture) into a folder of the run's artifacts. It must stay until MLflow has it."""
        name = str(path.resolve())
        if (name, folder) not in self._logged:
            self._write({"file": name, "folder": folder})

    def log_model(
        self,
        *,
        kind: Literal["encoder", "compositor"],
        directory: Path,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        passing: bool = False,
    ) -> None:
        """Log weights (an exported folder) as a logged model that carries `metrics`, measured at `step`.

        passing: those of a checkpoint; the folder is removed when MLflow has it.
        """
        values = {name: float(value) for name, value in (metrics or {}).items()}
        name = f"{kind}-step-{step}" if passing else f"{kind}-weights"
        place = {"directory": str(directory.resolve()), "passing": passing}
        self._write({"model": kind, "name": name, "step": step, "metrics": values, **place})

    def close(self, status: str, flush_s: float) -> None:
        """Wait at most `flush_s` seconds for MLflow, and not at all for one that cannot be reached."""
        self._write({"status": status})
        self._file.close()
        self._closing.set()
        self._wake.set()
        self._thread.join(flush_s)
        if unsent := count_unsent(self._work_dir):
            warn(f"has not got {unsent} entries of {self._work_dir}; the next run here sends them, or `{SEND_COMMAND}`")

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time_ms": int(time.time() * 1000), **entry}) + "\n")
        self._file.flush()
        self._wake.set()


def send_unsent(root: Path, skip: Path | None = None) -> dict[Path, int]:
    """Send what the project's earlier runs could not: work folder => entries sent. Raises what MLflow raises."""
    sent = {}
    for record in sorted((root / "work").glob(f"*/*/{RECORD_FILE}")):
        work_dir = record.parent
        if work_dir == skip or not (count := count_unsent(work_dir)):
            continue
        with lock_journal(work_dir / METRICS_FILE, wait=False) as is_mine:
            if not is_mine:  # a run at work, which sends its own
                continue
            run = MlflowRun(work_dir, root)
            while run.send_next():
                pass
            sent[work_dir] = count
    return sent


def _feed_mlflow(work_dir: Path, root: Path, wake: threading.Event, closing: threading.Event) -> None:
    """The thread's body: send what is in the journal, and try again where that fails, until the run closes."""
    run: MlflowRun | None = None
    has_warned = has_swept = False
    with lock_journal(work_dir / METRICS_FILE, wait=True):
        while True:
            last = closing.is_set()
            wake.clear()
            try:
                run = run or MlflowRun(work_dir, root)
                while run.send_next():
                    pass
                if not has_swept:
                    has_swept = True
                    send_unsent(root, skip=work_dir)
            except Exception as error:
                run = None
                if not has_warned:
                    has_warned = True
                    warn(f"cannot be reached; what is logged is kept and sent later: {shorten(error)}")
                closing.wait(_RETRY_S)
            if last:
                return
            if run is not None:
                wake.wait()


def _list_logged(work_dir: Path) -> set[tuple[str, Any]]:
    """(metric, step) and (file, folder) of the journal."""
    logged: set[tuple[str, Any]] = set()
    for entry, _ in read_journal(work_dir / METRICS_FILE):
        if "file" in entry:
            logged.add((entry["file"], entry["folder"]))
        elif "model" not in entry:
            logged |= {(name, entry["step"]) for name in entry.get("metrics", {})}
    return logged
