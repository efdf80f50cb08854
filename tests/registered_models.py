"""Models of random weights and evaluations with made-up values, as the stages write them, for the registry's tests."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from flows.measurements import CASES, METRICS, attach_evaluation
from flows.registry import CHALLENGER, COMPOSITOR, ENCODER, PAIR_TAG
from imprint.core.files import compute_path_digest, write_bytes_atomic, write_json_atomic
from imprint.models import PRESETS, build_model, load_card, save_model
from imprint.models.checkpoint import ENCODER_PARTS
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store, resolve_tracking_uri

NUM_CASES = 30
PROTOCOL = "0123456789ab"
PERFECT = {"outside_changed": 0.0, "failed": 0.0}


def write_models(root: Path, seed: int, unet_seed: int | None = None) -> None:
    """An encoder, and a compositor that was trained on it; `unet_seed` makes another compositor on the same encoder."""
    model = build_model(PRESETS["tiny"], seed=seed)
    for folder in (ENCODER.folder, COMPOSITOR.folder):
        shutil.rmtree(root / folder, ignore_errors=True)
    save_model(model, root / ENCODER.folder, stage="test", extra={}, parts=ENCODER_PARTS)
    encoder = load_card(root / ENCODER.folder)["digests"]
    if unet_seed is not None:
        model.unet = build_model(PRESETS["tiny"], seed=unet_seed).unet
    save_model(model, root / COMPOSITOR.folder, stage="test", extra={"encoder_digests": encoder})
    write_json_atomic(root / COMPOSITOR.folder / "train_log.json", [])


def write_evaluation(
    root: Path, means: Mapping[str, float], *, protocol: str = PROTOCOL, digest: str | None = None
) -> None:
    """Evaluation of `models/compositor`, or of the model with `digest`, whose values scatter about `means`."""
    model = (digest or compute_path_digest(root / COMPOSITOR.folder))[:12]
    metrics = {"protocol": {"name": "cases", "hash": protocol}, "model": model}
    write_json_atomic(root / METRICS, {**metrics, **means})
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(0.0, 0.0 if name in PERFECT else 0.05, NUM_CASES) for name in means}
    lines = [",".join(["case", "view_change", "level", "method", *means])]
    for case in range(NUM_CASES):
        for level in ("exact", "box"):
            cells = [f"{mean + noise[name][case]:.4f}" for name, mean in means.items()]
            lines += [",".join([f"case_{case:03d}", "0-20", level, method, *cells]) for method in ("ours", "paste")]
    write_bytes_atomic(root / CASES, "\n".join(lines).encode())


def add_version(root: Path, name: str, *, digest: str, encoder: str) -> ModelVersion:
    """A version without files: what aliases, tags and measurements need, at a tenth of a registration's cost."""
    client, experiment = open_store(root)
    mlflow.set_tracking_uri(resolve_tracking_uri(root))  # `create_model_version` looks the model up there
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    run_id = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, name, run_id)
    client.finalize_logged_model(model.model_id, "READY")
    tags = {DIGEST_TAG: digest, PAIR_TAG: encoder}
    return client.create_model_version(name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id)


def add_pair(root: Path, digest: str, means: Mapping[str, float] | None, *, protocol: str = PROTOCOL) -> str:
    """A measured compositor with an encoder of its own, made challenger; the compositor's version."""
    add_version(root, ENCODER.name, digest=f"encoder of {digest}", encoder=digest)
    version = add_version(root, COMPOSITOR.name, digest=digest, encoder=digest)
    if means is not None:
        write_evaluation(root, means, protocol=protocol, digest=digest)
    client, _ = open_store(root)
    attach_evaluation(client, version, root)
    client.set_registered_model_alias(COMPOSITOR.name, CHALLENGER, str(version.version))
    return str(version.version)
