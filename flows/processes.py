"""The commands of one flow run: each in a process group of its own, all ended together, none left behind.

Prefect cancels a flow by an exception in its main thread and kills its process after 30 s; it knows nothing of the
commands that its threads wait for. So `Processes` keeps them, and a guard process in each group ends it if this
process is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from imprint.core.errors import InputError

GRACE_S = 20.0  # for a training to save and end; Prefect kills after 30
FailureKind = Literal["transient", "data", "config", "bug", "timeout", "cancelled", "unknown"]
_GUARD = Path(__file__).with_name("guard.py")


class StageFailedError(RuntimeError):
    """A stage's command failed; `kind` decides whether another try can help."""

    def __init__(self, stage: str, kind: FailureKind, message: str) -> None:
        super().__init__(stage, kind, message)  # all of them, so that it can be pickled
        self.kind = kind

    def __str__(self) -> str:
        stage, _, message = self.args
        return f"{stage}: {message}"


class Processes:
    """Runs commands until `stop`; from then on every command ends and none starts."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __reduce__(self) -> tuple[type[Processes], tuple[dict[str, str]]]:
        """A copy elsewhere has no commands yet: prefect-dask sends a task's parameters along to the tasks in it."""
        return Processes, (self._environment,)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def run(
        self, stage: str, command: list[str], *, cwd: Path, timeout_s: float | None, on_line: Callable[[str], None]
    ) -> int:
        """The command's exit code; each line of its output goes to `on_line`. `StageFailedError` if cut short."""
        process = self._start(stage, command, cwd)
        timed_out = threading.Event()
        timer = threading.Timer(timeout_s or threading.TIMEOUT_MAX, self._end_late, (process, timed_out))
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip())
            code = process.wait()
        finally:
            timer.cancel()
            _end_group(process, grace_s=0.0)  # what the command may have left running
            with self._lock:
                self._running.discard(process)
        if timed_out.is_set():
            raise StageFailedError(stage, "timeout", f"not done after {timeout_s:.0f} s (meta.timeout_s in dvc.yaml)")
        if self.stopped:
            raise StageFailedError(stage, "cancelled", "the run was cancelled")
        return code

    def stop(self) -> None:
        """Interrupt all commands, wait for them at most `GRACE_S` seconds, then kill. Returns when they have ended."""
        self._stopped.set()
        with self._lock:
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGINT)
        deadline_s = time.monotonic() + GRACE_S
        for process in running:
            _end_group(process, grace_s=max(0.0, deadline_s - time.monotonic()))

    def _start(self, stage: str, command: list[str], cwd: Path) -> subprocess.Popen[str]:
        with self._lock:  # so that `stop` sees every process that starts before it
            if self.stopped:
                raise StageFailedError(stage, "cancelled", "the run was cancelled")
            process = subprocess.Popen(
                [sys.executable, "-I", str(_GUARD), *command],
                cwd=cwd,
                env=self._environment,
                stdin=subprocess.PIPE,  # never written to: its end tells the guard that we are gone
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def _end_late(self, process: subprocess.Popen[str], timed_out: threading.Event) -> None:
        timed_out.set()
        _signal_group(process, signal.SIGINT)
        _end_group(process, grace_s=GRACE_S)


def build_environment(root: Path, **extra: str) -> dict[str, str]:
    """For DVC and the stages: this interpreter's programs first on PATH, no telemetry, DVC's site cache in the project.

    A tracking run of the caller's is not inherited: each stage has its own.
    """
    programs = Path(sys.executable).parent
    if not (programs / "dvc").exists():
        raise InputError(f"dvc is not installed beside {sys.executable}; run `make install`")
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    return inherited | {
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_STUDIO_OFFLINE": "true",
        "DVC_SITE_CACHE_DIR": str(find_site_cache(root)),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def find_site_cache(root: Path) -> Path:
    """Where DVC keeps what it knows of the project's files, such as their hashes."""
    return root.resolve() / ".dvc" / "site"


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # the group's id is that of its leader, the guard


def _end_group(process: subprocess.Popen[str], grace_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    _signal_group(process, signal.SIGKILL)
    process.wait()
