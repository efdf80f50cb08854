"""A compositor from a folder or from the MLflow registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from imprint.inference.composer import Compositor
from imprint.inference.registered import REGISTRY_SCHEME, download_registered
from imprint.models import ImprintModel, load_model


def load_compositor(model: str, root: Path = Path(".")) -> Compositor:
    """`model` is a folder as `train_compositor` writes it, or a URI such as `models:/imprint-compositor@champion` in
    the registry of the project at `root`. `InputError` names what is missing, or what is not what was registered."""
    if not model.startswith(REGISTRY_SCHEME):
        return _place(load_model(root / model))
    with tempfile.TemporaryDirectory() as folder:
        return _place(load_model(download_registered(model, root, Path(folder))))


def _place(model: ImprintModel) -> Compositor:
    """On the GPU where torch sees one, as in training; in float32, as it was saved."""
    return Compositor(model.to("cuda") if torch.cuda.is_available() else model)
