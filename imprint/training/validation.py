"""Held-out pairs at fixed noise: the loss with the right reference and with a stranger's, and sample pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprint.core.pixels import from_model_range, resize_image, save_image
from imprint.data import move_batch, select_rows, swap_objects
from imprint.diffusion import build_generators
from imprint.models import ImprintModel
from imprint.training.noising import fix_noising
from imprint.training.tasks import Task

NUM_PICTURES = 6
_STEPS, _GUIDANCE, _SEED = 12, 2.0, 0


@dataclass(frozen=True)
class Validation:
    """batch: the held-out samples; strangers: for each the index of one with another object."""

    batch: Any
    strangers: Sequence[int]
    chunk_size: int


@torch.no_grad()
def compute_validation(model: ImprintModel, task: Task, validation: Validation) -> dict[str, float]:
    """`val_loss` and `val_loss_shuffled`: the training's loss, the latter with another object as the reference."""
    batch = validation.batch
    stranger = swap_objects(batch, validation.strangers)
    return {
        "val_loss": _mean_loss(model, task, batch, validation.chunk_size),
        "val_loss_shuffled": _mean_loss(model, task, stranger, validation.chunk_size),
    }


@torch.no_grad()
def save_pictures(model: ImprintModel, task: Task, validation: Validation, path: Path) -> None:
    """A grid of fixed cases with fixed seeds, one per row: reference, target, sample."""
    count = min(NUM_PICTURES, len(validation.batch.position))
    # spread over the held-out samples, which are sorted by clip
    rows = [index * len(validation.batch.position) // count for index in range(count)]
    batch = move_batch(select_rows(validation.batch, rows), model.device)
    generator = build_generators(count, _SEED, "pictures")
    samples = task.sample_images(model, batch, steps=_STEPS, guidance=_GUIDANCE, generator=generator)
    columns = [_to_pictures(images) for images in (batch.reference, task.get_target(batch), samples)]
    size_hw = columns[1][0].shape[:2]
    lines = [np.hstack([resize_image(picture, size_hw) for picture in line]) for line in zip(*columns, strict=True)]
    save_image(path, np.vstack(lines))


def _mean_loss(model: ImprintModel, task: Task, batch: Any, chunk_size: int) -> float:
    preset = model.preset
    shape_chw = (preset.latent_channels, preset.latent_px, preset.latent_px)
    losses = []
    for start in range(0, len(batch.position), chunk_size):
        rows = range(start, min(start + chunk_size, len(batch.position)))
        chunk = move_batch(select_rows(batch, rows), model.device)
        noising = fix_noising(chunk.position, shape_chw=shape_chw, seed=_SEED)
        losses.append(task.compute_losses(model, chunk, noising))
    return float(torch.cat(losses).double().mean())


def _to_pictures(images: torch.Tensor) -> list[np.ndarray]:
    return list(from_model_range(images.float().cpu().numpy()))
