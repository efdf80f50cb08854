"""One training run from its params to its averaged weights: what both stages' commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module

from imprint.core.files import publish_dir, write_json_atomic
from imprint.core.params import Training
from imprint.core.stage import StageRun, claim_work_dir
from imprint.data import (
    DrawRules,
    PairDataset,
    ShardReader,
    build_fixed_batch,
    check_sizes,
    choose_strangers,
    load_batches,
    select_pairs,
    spread_pairs,
)
from imprint.diffusion import build_scheduler
from imprint.models import ImprintModel, Preset, save_model
from imprint.models.freezing import apply_freeze_map
from imprint.models.lora import add_lora, merge_lora
from imprint.tracking import Tracker, start_run
from imprint.training.checkpoint_models import check_checkpoint_models
from imprint.training.loop import Trainer, is_out_of_time, run_loop
from imprint.training.optimizer import build_optimizer, copy_weights
from imprint.training.precision import check_precision
from imprint.training.processes import (
    Losses,
    build_accelerator,
    check_same_step,
    is_main_process,
    leave_together,
    share_batches,
)
from imprint.training.state import TrainState, build_state, get_final_metrics, load_state
from imprint.training.tasks import Task, list_kinds
from imprint.training.validation import Validation

_VALIDATION_SEED = 0


@contextmanager
def work_on(run: StageRun, root: Path) -> Iterator[Tracker | None]:
    """The run's work folder for this training alone, and its tracker; None in all processes but the main one."""
    accelerator = build_accelerator()
    try:
        with ExitStack() as stack:
            tracker = None
            if is_main_process():
                stack.enter_context(claim_work_dir(run))
                tracking = {"stage": run.name, "key": run.key, "params": run.params, "inputs": run.inputs}
                tracker = stack.enter_context(start_run(**tracking, work_dir=run.work_dir, root=root))
            yield tracker
    except SystemExit:  # a stop, which all processes come to
        leave_together(accelerator)
        raise
    leave_together(accelerator)


def train_model(
    model: ImprintModel,
    task: Task,
    *,
    reader: ShardReader,
    params: Training,
    from_scratch: bool,
    train_middle_block: bool,
    run: StageRun,
    tracker: Tracker | None,
) -> TrainState:
    """Train `model` in place, from the run's newest checkpoint if there is one; it ends with the averaged weights.

    tracker: of the main process alone.
    """
    check_checkpoint_models(params, model.preset, stage=run.name)
    pairs = select_pairs(reader, list_kinds(task), split="train", at_least=params.batch_size)
    preset = model.preset
    first = next(iter(pairs.values()))[0]
    check_sizes(reader, first, preset=preset.name, size_px=preset.size_px, reference_px=preset.canvas_px)
    validation = build_validation(reader, task, params=params, preset=preset)
    with deterministic(params.threads):
        accelerator = build_accelerator()
        check_precision(params, accelerator.device, stage=run.name)
        shares = share_batches(params, accelerator, stage=run.name)
        prepare_model(model, params, device=accelerator.device)
        chosen = {"from_scratch": from_scratch, "train_middle_block": train_middle_block}
        apply_freeze_map(model, task.stage, **chosen, rates=params.learning_rate.model_dump())
        if params.offload_frozen:
            offload_frozen(model, accelerator.device)
        state = build_state(model, build_optimizer(model, params))
        trainer = Trainer(
            name=run.name,
            task=task,
            params=params,
            accelerator=accelerator,
            shares=shares,
            losses=accelerator.prepare_model(
                Losses(partial(task.compute_losses, model), state.parameters.values()), device_placement=False
            ),
            validation=validation,
            tracker=tracker,
            work_dir=run.work_dir,
        )
        load_state(state, trainer.checkpoints, quiet=tracker is None)
        check_same_step(accelerator, state.step)
        dataset = PairDataset(reader, pairs, show_views(task.rules, preset), task.build_sample, params.seed)
        batches = load_batches(
            dataset,
            start_step=state.step,
            num_steps=params.max_steps,
            shares=shares,
            num_workers=params.loader_workers,
        )
        run_loop(trainer, model, state=state, batches=batches)
    copy_weights(state.parameters, state.ema)
    finish_model(model, params)
    return state


def prepare_model(model: ImprintModel, params: Training, *, device: torch.device) -> None:
    """On its device, with what only training needs."""
    if model.preset.lora_rank > 0:
        add_lora(model.unet, rank=model.preset.lora_rank, seed=params.seed)
    model.to(device)
    if params.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.backbone.activation_checkpointing_enable({"use_reentrant": False})


def finish_model(model: ImprintModel, params: Training) -> None:
    """Without what only training needs, in evaluation mode."""
    if params.offload_frozen:
        remove_hook_from_module(model, recurse=True)
    if params.gradient_checkpointing:
        model.unet.disable_gradient_checkpointing()
        model.backbone.activation_checkpointing_disable()
    if model.preset.lora_rank > 0:
        merge_lora(model.unet)
    model.eval().requires_grad_(False)


def offload_frozen(model: ImprintModel, device: torch.device) -> None:
    """Parts without a parameter that trains are on the device only while they are at work."""
    for part in model.parts:
        module = getattr(model, part)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            cpu_offload(module, execution_device=device)


def build_validation(reader: ShardReader, task: Task, *, params: Training, preset: Preset) -> Validation:
    """The held-out samples: nothing mirrored or recoloured, mask levels and margins as drawn once and for all."""
    by_kind = select_pairs(reader, list_kinds(task), split="val")
    pairs = spread_pairs([pair for kind in sorted(by_kind) for pair in by_kind[kind]], params.validation_pairs)
    rules = replace(show_views(task.rules, preset), flip_rate=0.0, swap_rate=0.0)
    batch = build_fixed_batch(reader, pairs, rules=rules, build_sample=task.build_sample, seed=_VALIDATION_SEED)
    return Validation(batch=batch, strangers=choose_strangers(pairs), chunk_size=params.batch_size)


def show_views(rules: DrawRules, preset: Preset) -> DrawRules:
    """The rules with as many pictures of the object as the preset's model takes."""
    return replace(rules, max_references=preset.max_references, detail=preset.detail_crop)


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Fixed thread count, and deterministic kernels where there are any: the same count gives the same bits.

    Filling every new tensor with NaN, torch's default in this mode, is a debugging aid that costs a step 5 %.
    """
    memory: Any = torch.utils.deterministic
    previous = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(previous[0])
        torch.use_deterministic_algorithms(previous[1], warn_only=True)
        memory.fill_uninitialized_memory = previous[2]


def publish_model(
    model: ImprintModel,
    kind: Literal["encoder", "compositor"],
    *,
    extra: dict[str, Any],
    state: TrainState,
    params: Training,
    run: StageRun,
    target: Path,
    tracker: Tracker | None,
) -> None:
    """Export to the work folder and put the whole at its out path: weights, scheduler, card and the logged curve; and
    log it. By the main process alone.

    The card says after how many steps the training ended, and whether it was for `max_hours`.
    """
    if tracker is None:
        return
    export = run.work_dir / "export"
    end = {"steps": state.step}
    if state.step < params.max_steps and is_out_of_time(state, params):
        end |= {"ended_by": "max_hours"}
    save_model(model.cpu(), export, stage=run.name, extra=extra | end)
    build_scheduler(schedule=model.preset).save_pretrained(export / "scheduler")
    write_json_atomic(export / "train_log.json", state.history)
    publish_dir(export, target)
    # the work folder's copy: the other is replaced by the next run, perhaps before MLflow could be reached
    tracker.log_model(kind=kind, directory=export, metrics=get_final_metrics(state), step=state.step)
