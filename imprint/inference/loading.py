"""A compositor from a folder or from the MLflow registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.core.errors import InputError
from imprint.inference.composer import Compositor
from imprint.models import load_model
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTRY_SCHEME = "models:/"


def load_compositor(model: str, root: Path = Path(".")) -> Compositor:
    """`model` is a folder as `train_compositor` writes it, or a URI such as `models:/imprint-compositor@champion` in
    the registry of the project at `root`. `InputError` names what is missing and the remedy."""
    if not model.startswith(REGISTRY_SCHEME):
        return Compositor(load_model(root / model))
    with tempfile.TemporaryDirectory() as folder:
        return Compositor(load_model(_download(model, root, Path(folder))))


def _download(uri: str, root: Path, folder: Path) -> Path:
    """Fetch a registered model's files and find our model's folder among them."""
    client, _ = open_store(root)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = resolve_tracking_uri(root)
    try:
        location = _find_location(client, uri)
        local = download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=store)
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {uri} is not in {store} ({reason}); `make demo` registers one") from None
    found = sorted(Path(local).rglob("imprint.json"))
    if not found:
        raise InputError(f"--model {uri} holds no imprint.json; it is not a compositor of this project")
    return found[0].parent


def _find_location(client: MlflowClient, uri: str) -> str:
    """Where the files of `models:/name@alias` or `models:/name/version` lie.

    Not left to MLflow's own download of such a URI, which looks in the process's global registry whatever it is given.
    """
    target = uri.removeprefix(REGISTRY_SCHEME)
    name, at, alias = target.partition("@")
    if at:
        source = client.get_model_version_by_alias(name, alias).source
    else:
        name, slash, version = target.rpartition("/")
        if not slash:
            raise InputError(f"--model {uri}: write models:/name@alias or models:/name/version")
        source = client.get_model_version(name, version).source
    assert source is not None, f"{uri} has no source"
    if source.startswith(REGISTRY_SCHEME):  # a logged model
        return client.get_logged_model(source.removeprefix(REGISTRY_SCHEME)).artifact_location
    return source
