"""What the world does to a command: full disks, files of another owner, damaged settings, servers that are away.

The one place that knows which exceptions are the user's to mend. Whatever it does not know stays a traceback: a bug.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from imprint.core.errors import InputError

_OS_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room and give the command again"),
    errno.EROFS: "the disk is read-only: mount it for writing, or work in another folder",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "it is another user's: change its owner or its permissions"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "check the path, and that the disk is mounted"),
    **dict.fromkeys((errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), "something else stands there: move it away"),
    errno.ELOOP: "links lead in a circle: take one out",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EILSEQ: "the disk takes no such name: rename it",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit (`ulimit -n 4096`) and give the command again"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN), "the disk fails or is away: check it"),
}
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_TEXT_REMEDIES = (  # of databases and servers: what the message holds, lower case => what to do
    ("disk is full", "make room and give the command again"),
    ("readonly database", "the database cannot be written: change its owner or its permissions"),
    ("database is locked", "another program holds it: wait, and give the command again"),
    ("not a database", "the file is damaged: restore it from the backup, or move it away and `imprint register`"),
    ("malformed", "the file is damaged: restore it from the backup, or move it away and `imprint register`"),
    ("out-of-date database schema", "a different MLflow made it: back it up, then `mlflow db upgrade URI`"),
    ("can't locate revision", "a newer MLflow made it: install that one, or name another MLFLOW_TRACKING_URI"),
    ("unable to open database", "check that its folder is there and may be written"),
)
_SERVER = "start the server (`make up` for the project's own), or set or unset MLFLOW_TRACKING_URI and PREFECT_API_URL"
_CONFLICT = ("<<<<<<< ", ">>>>>>> ")
_MAX_TOLD = 300  # characters of a foreign message


def load_yaml(path: Path) -> Any:
    """What a YAML file says; None if it is empty. `InputError` where it is no UTF-8, no YAML, or half merged."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} is no UTF-8 (line {line}); save it as UTF-8") from None
    if any(line.startswith(_CONFLICT) for line in text.splitlines()):
        told = "`git checkout --ours dvc.lock`, then `dvc repro`" if path.name == "dvc.lock" else "end the merge in it"
        raise InputError(f"{path} has the conflict markers of a merge; {told}")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is no valid YAML: {_shorten(error)}; mend that line") from None


def load_json(path: Path) -> Any:
    """What a JSON file of the project says. `InputError` where a power cut or an editor left something else."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        remedy = "restore it from Git or DVC, or delete it, and give the command again"
        raise InputError(f"{path} is damaged ({_shorten(error)}); {remedy}") from None


def explain(error: BaseException) -> str | None:
    """One line with the culprit and the remedy if the user can mend what raised `error`; None for a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    library = type(error).__module__.partition(".")[0]
    if library in ("requests", "urllib3", "httpx", "httpcore", "aiohttp") or isinstance(error, ConnectionError):
        return f"a server does not answer ({_shorten(error)}); {_SERVER}"
    if isinstance(error, OSError):
        return _explain_os(error)
    if isinstance(error, yaml.YAMLError):
        return f"a settings file is no valid YAML: {_shorten(error)}; mend that line"
    if isinstance(error, UnicodeError):
        return f"a name or a text is no UTF-8 ({_shorten(error)}); rename the file, or save it as UTF-8"
    if library in ("mlflow", "sqlalchemy", "sqlite3", "alembic"):
        return _explain_store(error)
    if library in ("dvc", "dvc_data", "dvc_objects", "scmrepo"):
        return f"DVC: {_shorten(error)}; mend that and give the command again"
    return None


def is_transient(error: BaseException) -> bool:
    """Whether another try may help without anybody mending anything."""
    if isinstance(error, (ConnectionError, TimeoutError, BlockingIOError)):
        return True
    return type(error).__module__.partition(".")[0] in ("requests", "urllib3", "httpx", "httpcore")


@contextmanager
def exit_in_one_line(command: str) -> Iterator[None]:
    """One line on standard error and exit code 2 for what the user can mend; the traceback of all else."""
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"{command}: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def reach_loopback_directly() -> None:
    """Let every client of this process and of its children pass by a proxy for this machine's own servers."""
    if not any(
        os.environ.get(name)
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    ):
        return
    for name in ("no_proxy", "NO_PROXY"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        wanted = [host for host in ("127.0.0.1", "localhost", "::1") if host not in known]
        if "*" not in known:
            os.environ[name] = ",".join([*known, *wanted])


def _explain_os(error: OSError) -> str | None:
    if error.errno not in _OS_REMEDIES:
        return f"a server does not answer ({_shorten(error)}); {_SERVER}" if isinstance(error, TimeoutError) else None
    place = os.fsencode(error.filename or "a file").decode("utf-8", "backslashreplace")
    verb = "written" if error.errno in _WRITING else "used"
    return f"{place} cannot be {verb} ({error.strerror}); {_OS_REMEDIES[error.errno]}"


def _explain_store(error: BaseException) -> str | None:
    text = str(error)
    for part, remedy in _TEXT_REMEDIES:
        if part in text.lower():
            return f"MLflow's database: {_shorten(error)}; {remedy}"
    if any(
        part in text for part in ("API request to", "HTTPConnectionPool", "HTTPSConnectionPool", "Connection refused")
    ):
        return f"MLflow at {os.environ.get('MLFLOW_TRACKING_URI', 'its server')} does not answer; {_SERVER}"
    if type(error).__module__.startswith("mlflow"):
        return f"MLflow: {_shorten(error)}; check MLFLOW_TRACKING_URI, `imprint models` lists what is registered"
    return None


def _shorten(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MAX_TOLD]
