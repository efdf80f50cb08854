"""Models of random weights and evaluations with made-up values, as the stages write them, for the registry's tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flows.measurements import CASES, METRICS
from flows.registry import COMPOSITOR, ENCODER
from imprint.core.files import compute_path_digest, write_bytes_atomic, write_json_atomic
from imprint.models import PRESETS, build_model, load_card, save_model
from imprint.models.checkpoint import ENCODER_PARTS

NUM_CASES = 30
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


def write_evaluation(root: Path, means: Mapping[str, float], *, protocol: str = "0123456789ab", seed: int = 0) -> None:
    """Evaluation of `models/compositor` whose values scatter about `means`."""
    model = compute_path_digest(root / COMPOSITOR.folder)[:12]
    metrics = {"protocol": {"name": "cases", "hash": protocol}, "model": model}
    write_json_atomic(root / METRICS, {**metrics, **means})
    rng = np.random.default_rng(seed)
    noise = {name: rng.normal(0.0, 0.0 if name in PERFECT else 0.05, NUM_CASES) for name in means}
    lines = [",".join(["case", "level", "method", *means])]
    for case in range(NUM_CASES):
        for level in ("exact", "box"):
            cells = [f"{mean + noise[name][case]:.4f}" for name, mean in means.items()]
            lines += [",".join([f"case_{case:03d}", level, method, *cells]) for method in ("ours", "paste")]
    write_bytes_atomic(root / CASES, "\n".join(lines).encode())
