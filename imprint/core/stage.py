"""What every stage's command shares: its key and work folder, its inputs' digests, its errors.

A run works in `work/<stage>/<key>/` and resumes only from there; the key is a digest of the stage's params section,
its inputs and its code, so that a run with new parameters never meets the old run's checkpoints.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_path_digest, write_json_atomic
from imprint.core.outside import explain, is_transient, load_yaml

ErrorKind = Literal["transient", "data", "config", "bug"]
PACKAGES_ROOT = Path(__file__).resolve().parents[2]  # where imprint/ and data_prep/ lie


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


def open_stage(name: str, params: Any, inputs: Iterable[Path], code: Iterable[str], root: Path = Path(".")) -> StageRun:
    """Compute the key and make the work folder. `params` is the stage's section, `code` the sub-packages it uses."""
    section = params.model_dump(mode="json")
    digests = {path.as_posix(): compute_input_digest(path, root) for path in inputs}
    key = compute_digest(json.dumps([name, section, digests, compute_code_digest(code)], sort_keys=True))[:16]
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


def compute_code_digest(packages: Iterable[str]) -> str:
    """Digest of the sources of dotted packages or modules (`imprint.core`, `data_prep.ledger`)."""
    parts = []
    for package in sorted(packages):
        path = PACKAGES_ROOT.joinpath(*package.split("."))
        parts.append(f"{package} {compute_path_digest(path if path.is_dir() else path.with_suffix('.py'))}")
    return compute_digest("\n".join(parts))


def compute_input_digest(path: Path, root: Path = Path(".")) -> str:
    """DVC's own md5 of a path where `dvc.lock` records it and the path exists; else sha256 of the content."""
    if not (root / path).exists():
        raise InputError(f"{path} is missing; run `dvc repro` (or `dvc pull`) first")
    return read_dvc_digests(root).get(path.as_posix()) or compute_path_digest(root / path)


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
