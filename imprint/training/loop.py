"""The training loop of both stages. Everything random in it is a function of (seed, position of the sample)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from imprint.core.errors import InputError
from imprint.core.params import Training
from imprint.core.progress import Bar, show_progress
from imprint.data import PAIR_KINDS, BatchShares, halve_batch, move_batch
from imprint.models import ImprintModel
from imprint.tracking import Tracker
from imprint.training.checkpoint_models import log_checkpoint
from imprint.training.clock import Clock, measure_machine
from imprint.training.interrupts import StopRequest, catch_signals
from imprint.training.noising import Noising, draw_noising
from imprint.training.optimizer import (
    averaged_weights,
    compute_ema_decay,
    compute_expected_steps,
    compute_rate_factor,
    set_rates,
    update_ema,
)
from imprint.training.precision import compute_in
from imprint.training.processes import agree
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
    shares: BatchShares
    losses: nn.Module  # batch, noising -> the task's losses of the model
    validation: Validation
    tracker: Tracker | None  # of the main process alone
    work_dir: Path

    @property
    def checkpoints(self) -> Path:
        return self.work_dir / "checkpoints"


def run_loop(trainer: Trainer, model: ImprintModel, *, state: TrainState, batches: Iterator[Any]) -> None:
    """Train to `max_steps` or for `max_hours`, whichever comes first.

    SIGTERM and SIGINT to any process save after the step, or before it where the batch has parts left to compute, and
    raise SystemExit with 128 + the signal in every process.
    """
    params, clock = trainer.params, Clock(state.elapsed_s)
    model.train()
    with catch_signals() as stop, _show_progress(trainer, state) as bar:
        while not is_finished(state, params):
            started_s = time.monotonic()
            done = run_step(trainer, model, state=state, batches=batches, clock=clock, stop=stop)
            if done:
                images_per_s = params.batch_size / (time.monotonic() - started_s)
                report_step(trainer, model, state=state, bar=bar, clock=clock, images_per_s=images_per_s)
            # the checkpoint comes last: it holds all that was logged up to its step
            if stop or is_due(params.checkpoint_every_steps, state, params):
                save_checkpoint(trainer, model, state=state)
            if stop:
                raise_stop(trainer, state, stop)
    model.eval()


def run_step(
    trainer: Trainer, model: ImprintModel, *, state: TrainState, batches: Iterator[Any], clock: Clock, stop: StopRequest
) -> bool:
    """One step: for each part of the batch augment, noise, loss, gradient; then clip, optimizer, average.

    False if a stop came before the last part: then nothing has changed.
    """
    params, num_parts = trainer.params, trainer.params.accumulate_steps
    set_rates(state.optimizer, find_rate_factor(state, params))
    loss, elapsed_s = 0.0, state.elapsed_s
    for part in range(1, num_parts + 1):
        batch = clock.fetch(batches)
        of_part = compute_gradient(trainer, model, batch=batch, step=state.step, is_last=part == num_parts)
        mean, elapsed_s = agree(trainer.accelerator, of_part, stop=stop, elapsed_s=clock.elapsed_s)
        loss += mean / num_parts
        if stop and part < num_parts:
            return False
    norm = trainer.accelerator.clip_grad_norm_(list(state.parameters.values()), params.max_grad_norm)
    check_finite(trainer.name, loss, norm, step=state.step + 1)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.elapsed_s = elapsed_s
    update_ema(state.ema, state.parameters, find_ema_decay(state, params))
    state.recent_losses.append(loss)
    return True


def compute_gradient(trainer: Trainer, model: ImprintModel, *, batch: Any, step: int, is_last: bool) -> Tensor:
    """Add a part's share to the gradient, which the processes exchange with the last part. Returns the part's loss."""
    accelerator = trainer.accelerator
    batch, noising = prepare_batch(trainer, model, batch=batch, step=step)
    with nullcontext() if is_last else accelerator.no_sync(trainer.losses):
        with accelerator.autocast(), compute_in(trainer.params, accelerator.device):
            loss = trainer.losses(batch, noising).mean()
        accelerator.backward(loss / trainer.params.accumulate_steps)
    return loss.detach()


def prepare_batch(trainer: Trainer, model: ImprintModel, *, batch: Any, step: int) -> tuple[Any, Noising]:
    """The batch on the model's device, its references changed, and the noise of its samples."""
    params, preset = trainer.params, model.preset
    shifts = [params.timestep_shifts.get(PAIR_KINDS[kind]) or params.timestep_shift for kind in batch.kind.tolist()]
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
        timestep_shift=shifts,
    )
    return batch, noising


def check_finite(name: str, loss: float, norm: Tensor | None, *, step: int) -> None:
    """`InputError` before the optimizer has spoiled the weights."""
    assert norm is not None
    values = loss, float(norm)
    if not all(map(math.isfinite, values)):
        raise InputError(
            f"step {step}: loss {values[0]:.4g} and gradient norm {values[1]:.4g} are not both finite; "
            f"lower {name}.learning_rate or {name}.max_grad_norm, or lengthen warmup_steps"
        )


def find_rate_factor(state: TrainState, params: Training) -> float:
    """The coming step's share of the peak rates.

    With `max_hours` it follows the clock where that is ahead of the steps, and so the machine's load: a resumed run
    takes its first step with the rate that the checkpoint's time gives, as if it had never stopped.
    """
    share = compute_time_share(state, params)
    return compute_rate_factor(
        state.step, warmup_steps=params.warmup_steps, max_steps=params.max_steps, time_share=share
    )


def find_ema_decay(state: TrainState, params: Training) -> float:
    """Of the finished step; the half-life is a share of the steps that the run will really have."""
    share = compute_time_share(state, params)
    num_steps = compute_expected_steps(state.step, max_steps=params.max_steps, time_share=share)
    return compute_ema_decay(state.step, halflife_share=params.ema_halflife_share, max_steps=num_steps)


def compute_time_share(state: TrainState, params: Training) -> float:
    """How much of `max_hours` is gone; 0 without a limit."""
    return state.elapsed_s / (params.max_hours * 3600) if params.max_hours else 0.0


def is_finished(state: TrainState, params: Training) -> bool:
    """Whether the run has come to its end, by steps or by time."""
    return state.step >= params.max_steps or is_out_of_time(state, params)


def is_out_of_time(state: TrainState, params: Training) -> bool:
    """Whether `max_hours` are over."""
    return compute_time_share(state, params) >= 1


def is_due(every_steps: int, state: TrainState, params: Training) -> bool:
    """Every so many steps, and at the end."""
    return state.step % every_steps == 0 or is_finished(state, params)


def report_step(
    trainer: Trainer, model: ImprintModel, *, state: TrainState, bar: Bar | None, clock: Clock, images_per_s: float
) -> None:
    """Progress, and what is due of the curve and of the held-out measurements."""
    params = trainer.params
    if bar is not None:
        bar.advance(note=f"loss {state.recent_losses[-1]:.4f}, {images_per_s:.1f} images/s")
    if is_due(params.log_every_steps, state, params):
        metrics = {"images_per_s": images_per_s, "loader_wait_share": clock.read_wait_share()}
        log_losses(trainer, state, metrics)
    if is_due(params.validate_every_steps, state, params):
        validate(trainer, model, state=state)


def log_losses(trainer: Trainer, state: TrainState, metrics: dict[str, float]) -> None:
    """The mean training loss since the last entry, and of this moment the rates, `metrics` and the machine's."""
    losses = {"loss": sum(state.recent_losses) / len(state.recent_losses)}
    state.history.append({"step": state.step, **losses})
    state.recent_losses.clear()
    if trainer.tracker is not None:
        rates = {f"rate_{group['name']}": group["lr"] for group in state.optimizer.param_groups}
        trainer.tracker.log_metrics({**losses, **rates, **metrics, **measure_machine()}, step=state.step)


def validate(trainer: Trainer, model: ImprintModel, *, state: TrainState) -> None:
    """Held-out losses and sample pictures of the averaged weights, by the main process."""
    if trainer.tracker is None:
        return
    path = trainer.work_dir / "samples" / f"step-{state.step:06d}.png"
    with averaged_weights(model, state.parameters, state.ema):
        metrics = compute_validation(model, trainer.task, trainer.validation)
        save_pictures(model, trainer.task, trainer.validation, path)
    state.history.append({"step": state.step, **metrics})
    trainer.tracker.log_metrics(metrics, step=state.step)
    trainer.tracker.log_file(path, folder="samples")


def save_checkpoint(trainer: Trainer, model: ImprintModel, *, state: TrainState) -> None:
    """Save the state, by the main process, and its averaged weights as a logged model where that is wanted."""
    if trainer.tracker is None:
        return
    save_state(state, trainer.checkpoints, keep=trainer.params.keep_checkpoints)
    if trainer.params.log_checkpoints_as_models:
        kind = "encoder" if trainer.task.stage == "identity" else "compositor"
        log_checkpoint(trainer.tracker, model, state, kind=kind, stage=trainer.name, work_dir=trainer.work_dir)


def raise_stop(trainer: Trainer, state: TrainState, stop: StopRequest) -> None:
    """SystemExit with the signal's exit code."""
    if trainer.tracker is not None:
        print(f"{trainer.name}: stopped and saved at step {state.step}", file=sys.stderr, flush=True)
    raise SystemExit(stop.exit_code)


def _show_progress(trainer: Trainer, state: TrainState) -> AbstractContextManager[Bar | None]:
    if trainer.tracker is None:
        return nullcontext()
    return show_progress(trainer.name, trainer.params.max_steps, state.step)
