"""`imprint estimate`: both stages set against a card, and what each number is worth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imprint.core.params import Params, load_params
from imprint.estimate.devices import GIB, Card, choose_card
from imprint.estimate.disk import scale_data
from imprint.estimate.stages import StageEstimate, estimate_stages

_GB, _TERA = 1e9, 1e12
_OPTIMIZERS = ("adamw", "adamw-8bit")

HOW = """How this was found.
  Counted: parameters and freeze map of the full-size model on torch's meta device; bytes of weights, average (EMA),
    moments and checkpoints from their shapes; floating point operations of matrix products, convolutions and attention,
    by torch's own formulas, in one forward and backward pass of the stage's own loss.
  Lower bounds: memory of a step. It is the largest sum of tensors that live at once in that pass; what CUDA, its
    libraries and fragmentation take comes on top. Over the card's memory is certain; below it is a hope.
  Assumed: the card's peak throughput is its maker's; the share of it that is reached (--utilisation) is a guess, so the
    hours are too. Waiting for data, validation and checkpoints are not in them.
  Measured: the data's bytes per pixel, on the rendered demo clips. Yours differ.
  Nothing here was measured on a GPU: docs/verified.md has what was. `imprint verify` measures on your machine."""


def run_estimate(
    overlay: Path | None,
    *,
    card: str,
    memory_gb: float | None,
    tflops: float | None,
    utilisation: float,
    bfloat16: bool,
    clip_hours: float,
    root: Path = Path("."),
) -> None:
    """Print the estimate of both stages of the params. `InputError` for what does not fit together."""
    chosen = choose_card(card, memory_gb, tflops)
    params = load_params(root / "params.yaml", overlay and root / overlay)
    stages = estimate_stages(params, root, bfloat16=bfloat16)
    for line in describe(
        params, stages, card=chosen, utilisation=utilisation, bfloat16=bfloat16, clip_hours=clip_hours
    ):
        print(line)


def describe(
    params: Params, stages: list[StageEstimate], *, card: Card, utilisation: float, bfloat16: bool, clip_hours: float
) -> Iterator[str]:
    """The lines of the estimate."""
    precision = "bfloat16 and float32" if bfloat16 else "float32"
    yield f"Preset {params.pretrain_encoder.preset} in {precision} on {card.name}: {card.memory_gb:g} GiB, at most"
    yield f"{card.bf16:g} TFLOPS in bfloat16 and {card.tf32:g} in TF32 by its maker's word."
    for number, stage in enumerate(stages, start=1):
        yield ""
        yield f"Stage {number}, {stage.name}"
        yield from _describe_parameters(stage)
        yield from _describe_memory(stage, card)
        yield from _describe_time(stage, card, utilisation)
    yield ""
    yield from _describe_disk(params, stages, clip_hours)
    yield ""
    yield HOW


def _describe_parameters(stage: StageEstimate) -> Iterator[str]:
    counts = (
        f"{part} {trained / 1e6:,.1f} of {count / 1e6:,.1f}" for part, (count, trained) in stage.parameters.items()
    )
    yield f"  trains, in millions: {', '.join(counts)}"


def _describe_memory(stage: StageEstimate, card: Card) -> Iterator[str]:
    state, params = stage.state, stage.params
    asked = {
        "checkpointing": params.gradient_checkpointing,
        "optimizer": params.optimizer,
        "accumulates": params.accumulate_steps > 1,
    }
    samples = stage.samples_at_once
    step = stage.compute_step_bytes(samples, **asked)
    pictures = stage.compute_validation_bytes(params.optimizer)
    kept = {"weights": state.weights, "average": state.average, params.optimizer: state.moments[params.optimizer]}
    parts = [f"{name} {num_bytes / GIB:.1f}" for name, num_bytes in kept.items()]
    yield f"  GPU memory, GiB, at least: {' + '.join(parts)}"
    yield f"    a step of {samples} at once, with gradients: {_judge(step, card)}"
    yield f"    validation pictures: {_judge(pictures, card)}"
    yield f"  What would fit, GiB{' (accumulating)' if params.accumulate_steps == 1 else ''}:"
    head = [f"{optimizer}{', checkpointing' * checkpointing}" for checkpointing, optimizer in _list_choices()]
    yield f"    {'at once':<9}" + "".join(f"{title:>28}" for title in head)
    for at_once in sorted({samples for _, samples in stage.passes}):
        found = [
            stage.compute_step_bytes(at_once, checkpointing=checkpointing, optimizer=optimizer, accumulates=True)
            for checkpointing, optimizer in _list_choices()
        ]
        yield f"    {at_once:<9}" + "".join(f"{_judge(num_bytes, card):>28}" for num_bytes in found)


def _list_choices() -> list[tuple[bool, str]]:
    return [(checkpointing, optimizer) for checkpointing in (False, True) for optimizer in _OPTIMIZERS]


def _judge(num_bytes: int, card: Card) -> str:
    return f"{num_bytes / GIB:.1f}{'' if num_bytes <= card.memory_gb * GIB else ' (too much)'}"


def _describe_time(stage: StageEstimate, card: Card, utilisation: float) -> Iterator[str]:
    params = stage.params
    flops = {"bfloat16": stage.compute_flops("bfloat16"), "float32": stage.compute_flops("float32")}
    peak = {"bfloat16": card.bf16 * _TERA, "float32": card.tf32 * _TERA}
    seconds = sum(flops[dtype] / peak[dtype] for dtype in flops) / utilisation / stage.processes
    told = " + ".join(f"{value / _TERA / params.max_steps:,.2f} in {dtype}" for dtype, value in flops.items() if value)
    yield f"  TFLOP per step of {params.batch_size}: {told}"
    limit = f", of which max_hours allows {params.max_hours:g}" if params.max_hours else ""
    at_most = f"{utilisation:.0%} of the peak" + (f" of {stage.processes} GPUs" if stage.processes > 1 else "")
    yield (
        f"  at {at_most}: {seconds / params.max_steps:.2f} s per step, "
        f"{seconds / 3600:.1f} hours for {params.max_steps:,} steps{limit}"
    )


def _describe_disk(params: Params, stages: list[StageEstimate], clip_hours: float) -> Iterator[str]:
    data = scale_data(params)
    packed = params.pack_shards
    yield f"Disk, GB, for {clip_hours:g} hours of video at {params.extract_frames.sample_fps:g} frames per second"
    yield (
        f"  frames {clip_hours * data.frames / _GB:.1f}, masks {clip_hours * data.masks / _GB:.1f}, shards at "
        f"{packed.size_px}/{packed.reference_px} px {clip_hours * data.shards / _GB:.1f}; and again in DVC's cache"
    )
    for stage in stages:
        checkpoint = stage.state.compute_checkpoint_bytes(stage.params.optimizer)
        count = stage.params.keep_checkpoints + 1
        yield (
            f"  {stage.name}: {count} checkpoints of {checkpoint / _GB:.1f} and one being written; the model "
            f"{stage.state.export / _GB:.1f}, four times (work/, models/, DVC's cache, MLflow)"
        )
        yield f"    main memory while a checkpoint is written: {checkpoint / _GB:.1f}"
    total = sum(count_disk_bytes(stage) for stage in stages)
    yield f"  both stages in all: {total / _GB:.0f}"


def count_disk_bytes(stage: StageEstimate) -> int:
    """The most that a stage's checkpoints and models take: those kept, the best, the one being written; four models."""
    checkpoint = stage.state.compute_checkpoint_bytes(stage.params.optimizer)
    return (stage.params.keep_checkpoints + 2) * checkpoint + 4 * stage.state.export
