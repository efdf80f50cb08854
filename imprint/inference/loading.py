"""A compositor from a folder or from the MLflow registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from imprint.core.errors import InputError
from imprint.inference.composer import Compositor
from imprint.models import load_model
from imprint.tracking.store import resolve_tracking_uri, set_mlflow_environment

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
    set_mlflow_environment()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    tracking_uri = resolve_tracking_uri(root)
    try:
        store = {"tracking_uri": tracking_uri, "registry_uri": tracking_uri}
        local = download_artifacts(artifact_uri=uri, dst_path=str(folder), **store)
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {uri} is not in {tracking_uri} ({reason}); register one with `make demo`") from None
    found = sorted(Path(local).rglob("imprint.json"))
    if not found:
        raise InputError(f"--model {uri} holds no imprint.json; it is not a compositor of this project")
    return found[0].parent
