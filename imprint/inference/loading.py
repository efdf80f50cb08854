"""A compositor from a folder or from the MLflow registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from imprint.inference.composer import Compositor
from imprint.inference.registered import REGISTRY_SCHEME, download_registered
from imprint.models import load_model


def load_compositor(model: str, root: Path = Path(".")) -> Compositor:
    """`model` is a folder as `train_compositor` writes it, or a URI such as `models:/imprint-compositor@champion` in
    the registry of the project at `root`. `InputError` names what is missing, or what is not what was registered."""
    if not model.startswith(REGISTRY_SCHEME):
        return Compositor(load_model(root / model))
    with tempfile.TemporaryDirectory() as folder:
        return Compositor(load_model(download_registered(model, root, Path(folder))))
