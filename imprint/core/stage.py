"""What every stage's command shares: its work folder and its errors.

A run works in `work/<stage>/<key>/` and resumes only from there; the key is a digest of what its result depends on
(`imprint.core.keys`), so that a run with new parameters never meets the old run's checkpoints.
"""

from __future__ import annotations

import fcntl
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel

from imprint.core.errors import InputError
from imprint.core.files import write_json_atomic
from imprint.core.keys import compute_input_digests, compute_key
from imprint.core.outside import explain, is_transient, load_yaml

ErrorKind = Literal["transient", "data", "config", "bug"]


@dataclass(frozen=True)
class StageRun:
    """One stage at work: `key` names what it computes, `work_dir` is where it may resume from."""

    name: str
    key: str
    work_dir: Path
    params: Mapping[str, Any]
    inputs: Mapping[str, str]  # path => digest

    @property
    def clips_dir(self) -> Path:
        """Per-clip products that outlive the run; their names carry their own digests."""
        return self.work_dir.parent / "clips"


def open_stage(name: str, params: BaseModel, inputs: Iterable[Path], module: str, root: Path = Path(".")) -> StageRun:
    """Compute the key and make the work folder. `params` is the stage's section, `module` the one that runs it."""
    section = params.model_dump(mode="json")
    digests = compute_input_digests(inputs, root)
    key = compute_key(name, params, inputs=digests, module=module)[:16]
    work_dir = root / "work" / name / key
    work_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(work_dir / "stage.json", {"name": name, "key": key, "params": section, "inputs": digests})
    return StageRun(name=name, key=key, work_dir=work_dir, params=section, inputs=digests)


@contextmanager
def claim_work_dir(run: StageRun) -> Iterator[None]:
    """Keep every other process out of the run's work folder; the claim ends with this process, however it ends.

    `InputError` names the process that holds it: one whose parent was killed goes on working, and two would mix up
    their checkpoints.
    """
    with (run.work_dir / "claim").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"process {file.read().strip() or '?'} is at work in {run.work_dir}; wait for it, or end it and retry"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_dvc_digests(root: Path = Path(".")) -> dict[str, str]:
    """Out path => md5 as in the project's `dvc.lock`; empty where there is none."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    stages = (load_yaml(lock) or {}).get("stages", {})
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", []) if "md5" in out}


def run_command(stage: str, body: Callable[[], Any], root: Path = Path(".")) -> None:
    """Run a stage's body as a command: what the user can mend ends in one line and exit code 2, and every failure
    leaves `work/<stage>/error.json` with its kind (`transient` | `data` | `config` | `bug`), because DVC hides exit
    codes. Of the processes of one training the first to fail says why."""
    record = root / "work" / stage / "error.json"
    try:
        if int(os.environ.get("RANK", 0)) == 0:
            record.unlink(missing_ok=True)
        body()
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        message = explain(error)
        transient = is_transient(error)
        if message is None or transient:
            told = "".join(traceback.format_exception_only(error)).strip()
            _record_error(record, "transient" if transient else "bug", told)
            raise
        _end(stage, record, message)
    except BaseException as error:
        _record_error(record, "bug", "".join(traceback.format_exception_only(error)).strip())
        raise


def _end(stage: str, record: Path, message: str) -> NoReturn:
    if _record_error(record, "config", message):
        print(f"{stage}: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _record_error(path: Path, kind: ErrorKind, message: str) -> bool:
    """False if another process of the same training was first: what the others then suffer is its consequence.

    A disk that cannot take the record either must not hide the reason, which is told on standard error all the same.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("x").close()
        write_json_atomic(path, {"kind": kind, "message": message, "pid": os.getpid()})
    except FileExistsError:
        return False
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror}), so a flow will not know the reason", file=sys.stderr)
    return True
