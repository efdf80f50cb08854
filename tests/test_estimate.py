"""`imprint estimate` against reality at small size: operations, and bytes of a step, optimizer and checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from imprint.cli import app
from imprint.core.errors import InputError
from imprint.core.params import Params, load_params
from imprint.estimate.command import describe
from imprint.estimate.counting import StepCount, build_batch, build_meta_model, count_step
from imprint.estimate.devices import CARDS, choose_card
from imprint.estimate.stages import StageEstimate
from imprint.estimate.state import StateBytes, count_8bit_moments, count_state
from imprint.models import PRESETS, build_model
from imprint.models.freezing import apply_freeze_map
from imprint.training.optimizer import build_optimizer
from imprint.training.state import build_state, save_state
from imprint.training.tasks import CompositingTask, IdentityTask
from tests.test_training import change

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 3
SCRATCH = {"from_scratch": True, "train_middle_block": True}


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")


@pytest.fixture(scope="module")
def counted(params: Params) -> StepCount:
    section = params.train_compositor
    model = build_meta_model(PRESETS["tiny"], CompositingTask(section), params=section, **SCRATCH)
    return count_step(model, CompositingTask(section), batch_size=SAMPLES, bfloat16=False)


def test_a_step_counted_without_numbers_is_the_real_one(params: Params, counted: StepCount) -> None:
    """The same operations by the same formulas on a real model, and at least as much memory in torch's own profile."""
    task = CompositingTask(params.train_compositor)
    model = build_model(PRESETS["tiny"], seed=0).train()
    apply_freeze_map(model, "compositing", **SCRATCH)
    with sdpa_kernel(SDPBackend.MATH):  # torch has no formula for its fused attention on the CPU
        real = count_step(model, task, batch_size=SAMPLES, bfloat16=False)
    # a fused attention computes its scores once more on the way back
    assert real.flops["float32"] < counted.flops["float32"] < 1.02 * real.flops["float32"]
    batch, noising = build_batch(model, task, SAMPLES)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task.compute_losses(model, batch, noising).mean().backward()
    assert 0 < counted.forward_bytes < counted.peak_bytes <= measure_peak_bytes(profiler)


def test_several_pictures_of_an_object_are_counted(params: Params, counted: StepCount) -> None:
    """As many operations as a real model with all of them; the picture and its detail crop cost more than one."""
    preset = replace(PRESETS["tiny"], max_references=2, detail_crop=True)
    task = CompositingTask(params.train_compositor)
    on_meta = build_meta_model(preset, task, params=params.train_compositor, **SCRATCH)
    several = count_step(on_meta, task, batch_size=SAMPLES, bfloat16=False).flops["float32"]
    model = build_model(preset, seed=0).train()
    apply_freeze_map(model, "compositing", **SCRATCH)
    with sdpa_kernel(SDPBackend.MATH):
        real = count_step(model, task, batch_size=SAMPLES, bfloat16=False).flops["float32"]
    assert real < several < 1.02 * real
    assert several > 1.05 * counted.flops["float32"]


def measure_peak_bytes(profiler: profile) -> int:
    """The most bytes that torch's allocator had given out at once since the profile began."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def test_a_product_counts_two_operations_per_multiply_add() -> None:
    """Closed form of a whole pass: forward, and backward to input and weights, of one linear map."""

    class OneProduct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 7))

    from imprint.estimate.counting import GpuRules, Meter

    model, inputs = OneProduct(), torch.zeros(3, 7, requires_grad=True)
    for bfloat16, dtype in ((False, "float32"), (True, "bfloat16")):
        with Meter([model.weight, inputs]) as meter, GpuRules(bfloat16=bfloat16):
            out = nn.functional.linear(inputs, model.weight)
        out.sum().backward()
        assert dict(meter.flops) == {dtype: 2 * 3 * 7 * 5}
        assert out.dtype == getattr(torch, dtype)


def test_state_bytes_are_those_of_the_real_optimizer_and_checkpoint(params: Params, tmp_path: Path) -> None:
    section = params.pretrain_encoder
    model = build_model(PRESETS["tiny"], seed=0)
    apply_freeze_map(model, "identity", from_scratch=False, train_middle_block=True)
    counted = count_state(model, section)
    optimizer = build_optimizer(model, section)
    state = build_state(model, optimizer)
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for values in optimizer.state.values() for key, value in values.items() if key != "step"]
    assert counted.moments["adamw"] == sum(value.nbytes for value in moments)
    assert counted.average == sum(value.nbytes for value in state.ema.values())
    assert counted.trained < sum(parameter.numel() for parameter in model.parameters()), "the U-Net's encoder is frozen"
    save_state(state, tmp_path, keep=1)
    written = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert 0 <= written - counted.compute_checkpoint_bytes("adamw") < 0.2 * written, "but for the file's header"


def test_moments_of_8_bits_take_a_byte_each_but_for_small_tensors() -> None:
    assert count_8bit_moments(1000) == 8 * 1000
    assert count_8bit_moments(256 * 1000) == 2 * 256 * 1000 + 2 * 4 * 1000


def test_frozen_parts_that_are_offloaded_take_no_gpu_memory(params: Params) -> None:
    model = build_model(PRESETS["tiny"], seed=0)
    apply_freeze_map(model, "compositing", from_scratch=False, train_middle_block=True)
    section = params.train_compositor
    here, away = (count_state(model, section.model_copy(update={"offload_frozen": is_on})) for is_on in (False, True))
    assert here.weights - away.weights == sum(value.nbytes for value in model.backbone.state_dict().values())


def test_checkpointing_remembers_less_and_computes_more(params: Params) -> None:
    """At sd15's structure with LoRA: in bfloat16, but for the VAE, which is in float32."""
    preset = replace(PRESETS["sd15-tiny"], lora_rank=2)
    counts = []
    for is_on in (False, True):
        section = params.pretrain_encoder.model_copy(update={"gradient_checkpointing": is_on})
        options = {"from_scratch": False, "train_middle_block": True}
        model = build_meta_model(preset, IdentityTask(section), params=section, **options)
        counts.append(count_step(model, IdentityTask(section), batch_size=8, bfloat16=True))
    plain, checkpointed = counts
    assert checkpointed.forward_bytes < 0.6 * plain.forward_bytes
    assert checkpointed.peak_bytes < plain.peak_bytes
    assert checkpointed.flops["bfloat16"] > 1.1 * plain.flops["bfloat16"]
    assert checkpointed.flops["float32"] == plain.flops["float32"] > 0


def build_estimate(params: Params, counted: StepCount, **changes: object) -> StageEstimate:
    section = change(params, train_compositor={"max_steps": 100, "batch_size": 8, **changes}).train_compositor
    state = StateBytes(trained=10, weights=80, average=40, moments={"adamw": 80, "adamw-8bit": 25}, export=80)
    return StageEstimate(
        name="train_compositor",
        params=section,
        parameters={"unet": (20, 10)},
        state=state,
        passes={(checkpointing, samples): counted for checkpointing in (False, True) for samples in (1, 2, 4, 8)},
        half_flops={"float32": counted.flops["float32"] // 4},
        picture_bytes=7,
        processes=section.processes,
    )


def test_a_stages_sum(params: Params) -> None:
    one = StepCount(flops={"float32": 1000}, forward_bytes=500, peak_bytes=510)
    settings = {"checkpointing": False, "optimizer": "adamw"}
    stage = build_estimate(params, one)
    assert stage.compute_step_bytes(8, **settings, accumulates=False) == 80 + 40 + 80 + 510
    assert stage.compute_step_bytes(8, **settings, accumulates=True) == 80 + 40 + 80 + 540, (
        "gradients of the parts before"
    )
    assert stage.compute_validation_bytes("adamw") == 80 + 2 * 40 + 80 + 7
    assert (stage.samples_at_once, stage.compute_flops("float32")) == (8, 100 * 8 * 1000)
    several = build_estimate(params, one, processes=2, accumulate_steps=2)
    assert several.samples_at_once == 2
    assert several.compute_step_bytes(2, **settings, accumulates=True) == 80 + 40 + 80 + 540 + 40, "and DDP's buckets"
    halved = build_estimate(params, one, half_size_steps=60)
    assert halved.compute_flops("float32") == 8 * (40 * 1000 + 60 * 250)


def test_what_is_too_much_says_so(params: Params) -> None:
    card = replace(CARDS["rtx-4090"], memory_gb=2.0)
    large = StepCount(flops={"float32": 1 << 40}, forward_bytes=0, peak_bytes=3 << 30)
    lines = list(
        describe(params, [build_estimate(params, large)] * 2, card=card, utilisation=0.5, bfloat16=False, clip_hours=1)
    )
    assert any("a step of 8 at once, with gradients: 3.0 (too much)" in line for line in lines)
    seconds = 8 * (1 << 40) / (82.6e12 * 0.5)
    assert any(f"{seconds:.2f} s per step" in line for line in lines)


@pytest.mark.parametrize("options", [("--card", "abacus"), ("--tflops", "3"), ("--params", "absent.yaml")])
def test_wrong_options_get_one_line(options: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["estimate", *options])
    assert result.exit_code == 2
    assert result.stderr.startswith("estimate: ")
    assert result.stderr.count("\n") == 1


def test_a_card_of_ones_own() -> None:
    card = choose_card("rtx-4090", 12.0, 40.0)
    assert (card.memory_gb, card.bf16, card.tf32) == (12.0, 40.0, 20.0)
    with pytest.raises(InputError, match="--memory-gb and --tflops go together"):
        choose_card("rtx-4090", 12.0, None)
