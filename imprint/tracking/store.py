"""Where MLflow keeps its data: a SQLite file and a folder inside the project, both by absolute path.

MLflow resolves relative URIs against the working directory and stores artifact paths as they are given, so a relative
one would point elsewhere from the next folder. `MLFLOW_TRACKING_URI` in the environment wins over the default.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.core.errors import InputError
from imprint.core.outside import reach_loopback_directly

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "imprint"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of a dead server; MLflow's own default takes minutes to give up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def resolve_tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or `mlflow.db` in the project's root folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or build_sqlite_uri(root)


def build_sqlite_uri(root: Path) -> str:
    """Of `mlflow.db` in the project. `InputError` for a folder that no such URI can name: what follows a `?` is
    options, and no escape is undone, so that the database would be made elsewhere."""
    path = root.resolve() / "mlflow.db"
    if "?" in str(path):
        raise InputError(f"{path.parent} has a `?` in its name, which MLflow's database cannot have; rename the folder")
    return f"sqlite:///{path}"


def set_mlflow_environment() -> None:
    """No telemetry, no progress bars, no pickles, and a dead server is given up soon; what is set already stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    reach_loopback_directly()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # else each of its retries is a line


def open_store(root: Path) -> tuple[MlflowClient, str]:
    """The client and the experiment's id; makes the database and the experiment where they are missing.

    Under a file lock, because two processes that make the database at once break it.
    """
    set_mlflow_environment()
    from mlflow import MlflowClient

    uri = resolve_tracking_uri(root)
    require_known_store(uri)
    with _lock(root):
        client = MlflowClient(uri, registry_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return client, found.experiment_id
        location = (root / "mlruns").resolve().as_uri() if uri.startswith("sqlite:") else None
        return client, client.create_experiment(EXPERIMENT, artifact_location=location)


def require_known_store(uri: str) -> None:
    """`InputError` for a store that has no registry, or that only a paid service has: MLflow says so late, or not."""
    if uri.startswith(("http://", "https://", "sqlite:", "postgresql", "mysql", "mssql")):
        return
    raise InputError(
        f"MLFLOW_TRACKING_URI {uri} is neither a server nor a database; set it to http://HOST:PORT or sqlite:////PATH, "
        "or unset it to use the project's own mlflow.db"
    )


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    folder = root / "mlruns"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
