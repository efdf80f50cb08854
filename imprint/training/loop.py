"""The training loop of both stages. Everything random in it is a function of (seed, step)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from imprint.core.errors import InputError
from imprint.core.params import Training
from imprint.core.progress import show_progress
from imprint.data import halve_batch, move_batch
from imprint.models import ImprintModel
from imprint.tracking import Tracker
from imprint.training.interrupts import catch_signals
from imprint.training.noising import Noising, draw_noising
from imprint.training.optimizer import averaged_weights, compute_ema_decay, compute_rate_factor, set_rates, update_ema
from imprint.training.state import TrainState, save_state
from imprint.training.tasks import Task
from imprint.training.validation import Validation, compute_validation, save_pictures


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a run works with and does not change: everything that changes is in the `TrainState`."""

    name: str
    task: Task
    params: Training
    accelerator: Accelerator
    validation: Validation
    tracker: Tracker
    work_dir: Path

    @property
    def checkpoints(self) -> Path:
        return self.work_dir / "checkpoints"


def run_loop(trainer: Trainer, model: ImprintModel, *, state: TrainState, batches: Iterator[Any]) -> None:
    """Train to `max_steps`. SIGTERM and SIGINT save after the step and raise SystemExit with 128 + the signal."""
    params = trainer.params
    model.train()
    with catch_signals() as stop, show_progress(trainer.name, params.max_steps, state.step) as bar:
        while state.step < params.max_steps:
            started_s = time.monotonic()
            loss = run_step(trainer, model, state=state, batch=next(batches))
            images_per_s = params.batch_size / (time.monotonic() - started_s)
            bar.advance(note=f"loss {loss:.4f}, {images_per_s:.1f} images/s")
            if is_due(params.log_every_steps, state, params):
                log_losses(trainer, state, images_per_s=images_per_s)
            if is_due(params.validate_every_steps, state, params):
                validate(trainer, model, state=state)
            # the checkpoint comes last: it holds all that was logged up to its step
            if stop or is_due(params.checkpoint_every_steps, state, params):
                save_state(state, trainer.checkpoints)
            if stop:
                print(f"{trainer.name}: stopped and saved at step {state.step}", file=sys.stderr, flush=True)
                raise SystemExit(stop.exit_code)
    model.eval()


def run_step(trainer: Trainer, model: ImprintModel, *, state: TrainState, batch: Any) -> float:
    """One step: augment, noise, loss, gradient, clip, optimizer, average. Returns the loss."""
    params, accelerator = trainer.params, trainer.accelerator
    factor = compute_rate_factor(state.step, warmup_steps=params.warmup_steps, max_steps=params.max_steps)
    set_rates(state.optimizer, factor)
    batch, noising = prepare_batch(trainer, model, batch=batch, step=state.step)
    with accelerator.autocast():
        loss = trainer.task.compute_losses(model, batch, noising).mean()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(list(state.parameters.values()), params.max_grad_norm)
    check_finite(trainer.name, loss, norm, step=state.step + 1)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    decay = compute_ema_decay(state.step, halflife_share=params.ema_halflife_share, max_steps=params.max_steps)
    update_ema(state.ema, state.parameters, decay)
    state.recent_losses.append(float(loss.detach()))
    return state.recent_losses[-1]


def prepare_batch(trainer: Trainer, model: ImprintModel, *, batch: Any, step: int) -> tuple[Any, Noising]:
    """The batch on the model's device, its references changed, and the noise of its samples."""
    params, preset = trainer.params, model.preset
    batch = move_batch(batch, model.device)
    batch = trainer.task.augment(batch, seed=params.seed * 1_000_003 + step)
    latent_px = preset.latent_px
    if step < params.half_size_steps:
        batch, latent_px = halve_batch(batch), latent_px // 2
    noising = draw_noising(
        batch.position,
        shape_chw=(preset.latent_channels, latent_px, latent_px),
        seed=params.seed,
        null_rate=params.null_rate,
        timestep_shift=params.timestep_shift,
    )
    return batch, noising


def check_finite(name: str, loss: Tensor, norm: Tensor | None, *, step: int) -> None:
    """`InputError` before the optimizer has spoiled the weights."""
    assert norm is not None
    values = float(loss.detach()), float(norm)
    if not all(map(math.isfinite, values)):
        raise InputError(
            f"step {step}: loss {values[0]:.4g} and gradient norm {values[1]:.4g} are not both finite; "
            f"lower {name}.learning_rate or {name}.max_grad_norm, or lengthen warmup_steps"
        )


def is_due(every_steps: int, state: TrainState, params: Training) -> bool:
    """Every so many steps, and at the end."""
    return state.step % every_steps == 0 or state.step == params.max_steps


def log_losses(trainer: Trainer, state: TrainState, *, images_per_s: float) -> None:
    """The mean training loss since the last entry."""
    metrics = {"loss": sum(state.recent_losses) / len(state.recent_losses)}
    state.history.append({"step": state.step, **metrics})
    state.recent_losses.clear()
    rates = {f"rate_{group['name']}": group["lr"] for group in state.optimizer.param_groups}
    trainer.tracker.log_metrics({**metrics, **rates, "images_per_s": images_per_s}, step=state.step)


def validate(trainer: Trainer, model: ImprintModel, *, state: TrainState) -> None:
    """Held-out losses and sample pictures of the averaged weights."""
    path = trainer.work_dir / "samples" / f"step-{state.step:06d}.png"
    with averaged_weights(model, state.parameters, state.ema):
        metrics = compute_validation(model, trainer.task, trainer.validation)
        save_pictures(model, trainer.task, trainer.validation, path)
    state.history.append({"step": state.step, **metrics})
    trainer.tracker.log_metrics(metrics, step=state.step)
    trainer.tracker.log_file(path, folder="samples")
