"""The averaged weights of a checkpoint as a logged model of MLflow's, for people to find, compare and load there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from imprint.core.errors import InputError
from imprint.core.params import Training
from imprint.models import ImprintModel, Preset, save_model
from imprint.tracking import Tracker
from imprint.training.optimizer import averaged_weights
from imprint.training.state import TrainState, get_final_metrics


def check_checkpoint_models(params: Training, preset: Preset, *, stage: str) -> None:
    """`InputError` where the weights are not whole in the middle of a training."""
    if params.log_checkpoints_as_models and (preset.lora_rank > 0 or params.offload_frozen):
        raise InputError(
            f"{stage}.log_checkpoints_as_models: with low-rank additions or offload_frozen there is no whole model "
            "before the end; set it to false"
        )


def log_checkpoint(
    tracker: Tracker,
    model: ImprintModel,
    state: TrainState,
    *,
    kind: Literal["encoder", "compositor"],
    stage: str,
    work_dir: Path,
) -> None:
    """Export to the work folder, from where the tracker takes it away. The metrics are the last ones up to the step."""
    directory = work_dir / "exports" / f"step-{state.step:08d}"
    unfinished = directory.with_name(f".{directory.name}")
    for old in (directory, unfinished):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    with averaged_weights(model, state.parameters, state.ema):
        save_model(model, unfinished, stage=stage, extra={"steps": state.step})
    os.replace(unfinished, directory)
    metrics = get_final_metrics(state)
    tracker.log_model(kind=kind, directory=directory, metrics=metrics, step=state.step, passing=True)
