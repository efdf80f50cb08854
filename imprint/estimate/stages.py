"""Both stages of a params file as `imprint estimate` sees them: what trains, what it keeps, what a step costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imprint.core.params import Params, TrainCompositor, Training
from imprint.core.progress import Bar, show_progress
from imprint.core.sources import find_cached, list_weights
from imprint.estimate.counting import StepCount, build_meta_model, count_pictures, count_step
from imprint.estimate.state import StateBytes, count_parameters, count_state
from imprint.models import ImprintModel, Preset
from imprint.models.checkpoint import load_preset
from imprint.models.pretrained import resolve_preset
from imprint.training.pretrain_stage import FRESH, PUBLISHED, choose_options, choose_preset
from imprint.training.tasks import CompositingTask, IdentityTask, Task

TRIED_SAMPLES = (1, 2, 4, 8)  # at once on a GPU, beside those that the params ask for
Passes = dict[tuple[bool, int], StepCount]  # gradient checkpointing or not, samples at once


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """parameters: part => all, trained; half_flops: of one sample at half the size, where the run begins so;
    picture_bytes: at once while validation pictures are decoded; processes: among which a batch is shared."""

    name: str
    params: Training
    parameters: dict[str, tuple[int, int]]
    state: StateBytes
    passes: Passes
    half_flops: dict[str, int]
    picture_bytes: int
    processes: int

    @property
    def samples_at_once(self) -> int:
        """Of a process: its share of the batch, or of it one part of `accumulate_steps`."""
        return count_at_once(self.params, self.processes)

    def compute_step_bytes(self, samples: int, *, checkpointing: bool, optimizer: str, accumulates: bool) -> int:
        """The most bytes of a step on one GPU with so many samples at once: a lower bound."""
        state, count = self.state, self.passes[checkpointing, samples]
        kept = state.gradients if accumulates else 0  # of the parts before
        exchanged = state.gradients if self.processes > 1 else 0  # DistributedDataParallel's buckets
        in_step = max(count.peak_bytes, kept + count.forward_bytes)
        return state.weights + state.average + state.moments[optimizer] + exchanged + in_step

    def compute_validation_bytes(self, optimizer: str) -> int:
        """While pictures are made: the trained weights are put aside for their average, and the pictures decoded."""
        state = self.state
        return state.weights + 2 * state.average + state.moments[optimizer] + self.picture_bytes

    def compute_flops(self, dtype: str) -> float:
        """Of the whole run, all processes together; `max_steps` of it."""
        whole = self.passes[self.params.gradient_checkpointing, 1].flops.get(dtype, 0)
        half_steps = min(self.params.half_size_steps, self.params.max_steps)
        samples = self.params.batch_size
        return samples * ((self.params.max_steps - half_steps) * whole + half_steps * self.half_flops.get(dtype, 0))


def estimate_stages(params: Params, root: Path, *, bfloat16: bool) -> list[StageEstimate]:
    """Stage 1, stage 2."""
    preset = find_preset(params, root)
    sections = [params.pretrain_encoder, params.train_compositor]
    with show_progress("estimate: counting", sum(2 * len(list_samples(section)) for section in sections)) as bar:
        return [_estimate_stage(params, preset, section, bfloat16=bfloat16, bar=bar) for section in sections]


def list_samples(section: Training) -> list[int]:
    """How many samples at once are counted."""
    return sorted({*TRIED_SAMPLES, count_at_once(section, count_processes(section))})


def count_processes(section: Training) -> int:
    """As the stage would start here."""
    return section.processes or max(torch.cuda.device_count(), 1)


def count_at_once(section: Training, processes: int) -> int:
    """Samples of one forward pass of a process."""
    return max(1, section.batch_size // (processes * section.accumulate_steps))


def find_preset(params: Params, root: Path) -> Preset:
    """The structure that training would start with: of a model's folder, of published weights that are here, or else of
    the preset as it is stated."""
    section = params.pretrain_encoder
    preset = choose_preset(section)
    if section.init == PUBLISHED:
        base, backbone = (find_cached(source, root) for source in list_weights(section.weights).values())
        return preset if base is None or backbone is None else resolve_preset(preset, base, backbone)
    return preset if section.init == FRESH else choose_options(load_preset(root / section.init), section)


def _estimate_stage(params: Params, preset: Preset, section: Training, *, bfloat16: bool, bar: Bar) -> StageEstimate:
    passes: Passes = {}
    for checkpointing in (False, True):
        model, task = _build(params, preset, section.model_copy(update={"gradient_checkpointing": checkpointing}))
        for samples in list_samples(section):
            passes[checkpointing, samples] = count_step(model, task, batch_size=samples, bfloat16=bfloat16)
            bar.advance()
    model, task = _build(params, preset, section)
    counted = {"parameters": count_parameters(model), "state": count_state(model, section)}
    picture_bytes, half_flops = count_pictures(model), {}
    if section.half_size_steps > 0:
        model.preset = replace(preset, size_px=preset.size_px // 2)
        half_flops = count_step(model, task, batch_size=1, bfloat16=bfloat16).flops
    return StageEstimate(
        name="train_compositor" if task.stage == "compositing" else "pretrain_encoder",
        params=section,
        passes=passes,
        half_flops=half_flops,
        picture_bytes=picture_bytes,
        processes=count_processes(section),
        **counted,
    )


def _build(params: Params, preset: Preset, section: Training) -> tuple[ImprintModel, Task]:
    """As the stages do."""
    first = params.pretrain_encoder
    from_scratch = first.init == FRESH or not first.freeze_unet_encoder
    if isinstance(section, TrainCompositor):
        model = build_meta_model(
            preset, CompositingTask(section), params=section, from_scratch=False, train_middle_block=True
        )
        return model, CompositingTask(section)
    task, middle = IdentityTask(first), first.train_middle_block
    model = build_meta_model(preset, task, params=section, from_scratch=from_scratch, train_middle_block=middle)
    return model, task
