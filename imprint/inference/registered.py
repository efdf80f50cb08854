"""Files of registered versions, checked: what the registry's tag says is what is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from imprint.core.errors import InputError
from imprint.core.files import compute_path_digest
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTRY_SCHEME = "models:/"
REGISTERING = "IMPRINT_REGISTERING"  # environment: digest of the files that this process is registering


def download_registered(uri: str, root: Path, folder: Path) -> Path:
    """Fetch `models:/name@alias` or `models:/name/version` into `folder`; the model's own folder in it.

    `InputError` if there is no such version, or if its weights are not those that were registered.
    """
    client, _ = open_store(root)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = resolve_tracking_uri(root)
    try:
        version = find_by_uri(client, uri)
        location = find_location(client, version)
        local = download_artifacts(artifact_uri=location, dst_path=str(folder), tracking_uri=store)
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {uri} is not in {store} ({reason}); `make demo` registers one") from None
    found = sorted(Path(local).rglob("imprint.json"))
    if not found:
        raise InputError(f"--model {uri} holds no imprint.json; it is not a model of this project")
    require_digest(found[0].parent, version)
    return found[0].parent


def require_digest(model: Path, version: ModelVersion) -> None:
    """`InputError` unless the files in `model` are those that the version's tag names."""
    recorded, digest = version.tags.get(DIGEST_TAG), compute_path_digest(model)
    if recorded != digest:
        raise InputError(
            f"{version.name} version {version.version}: its files have the digest {digest[:12]}, its tag says "
            f"{(recorded or 'none')[:12]}; do not use it: register the model again, or roll back"
        )


def require_registered(model: Path, name: str) -> None:
    """`InputError` unless some version of `name` in the process's own registry has exactly these files.

    For a served model, which is told its files but not its version. Where there is no registry (a folder that was
    carried to another machine), only the digests inside the folder are checked, by whoever loads it.
    """
    import mlflow

    uri = mlflow.get_registry_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return
    digest = compute_path_digest(model)
    if digest == os.environ.get(REGISTERING):  # MLflow tries a model out before it has a version
        return
    versions = mlflow.MlflowClient(registry_uri=uri).search_model_versions(f"name='{name}'")
    if digest not in {version.tags.get(DIGEST_TAG) for version in versions}:
        raise InputError(
            f"{name}: the files to be served (digest {digest[:12]}) are of no version in {uri}; register them with "
            "`imprint register`, or unset MLFLOW_TRACKING_URI to use a folder without a registry"
        )


def find_by_uri(client: MlflowClient, uri: str) -> ModelVersion:
    """The version of `models:/name@alias` or `models:/name/version`. `InputError` for another form.

    Not left to MLflow's own reading of such a URI, which looks in the process's global registry whatever it is given.
    """
    target = uri.removeprefix(REGISTRY_SCHEME)
    name, at, alias = target.partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, slash, version = target.rpartition("/")
    if not slash:
        raise InputError(f"--model {uri}: write models:/name@alias or models:/name/version")
    return client.get_model_version(name, version)


def find_location(client: MlflowClient, version: ModelVersion) -> str:
    """Where a version's files lie."""
    source = version.source
    assert source is not None, f"{version.name} {version.version} has no source"
    if source.startswith(REGISTRY_SCHEME):  # a logged model
        return client.get_logged_model(source.removeprefix(REGISTRY_SCHEME)).artifact_location
    return source
