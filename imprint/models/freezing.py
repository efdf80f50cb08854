"""What trains in which stage, as a pure function of a parameter's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

TrainingStage = Literal["identity", "compositing"]
PARTS = ("backbone", "adapter", "unet", "appearance_flow")  # those that may train; a VAE never does

# Paper, stage 1: the U-Net's encoder is frozen and its decoder trained. The class embedding is ours and always new.
_DECODER = ("up_blocks", "conv_norm_out", "conv_out", "class_embedding")


def is_trainable(name: str, stage: TrainingStage, *, from_scratch: bool, train_middle_block: bool) -> bool:
    """Whether parameter `name` of an `ImprintModel` trains.

    identity (stage 1): backbone and adapter; of the U-Net the decoder, and the middle block if asked for. A model from
    scratch (`from_scratch`) has nothing to freeze in its U-Net: all of it trains.
    compositing (stage 2): adapter, U-Net and, where there is one, the appearance flow.
    The VAE never trains.
    """
    part, _, rest = name.partition(".")
    assert part in (*PARTS, "vae"), f"parameter {name} belongs to no part"
    if part in ("backbone", "vae"):
        return part == "backbone" and stage == "identity"
    if part == "appearance_flow":
        return stage == "compositing"
    if part == "adapter" or stage == "compositing" or from_scratch:
        return True
    block = rest.split(".")[0]
    return block in _DECODER or (block == "mid_block" and train_middle_block)


def apply_freeze_map(
    model: nn.Module,
    stage: TrainingStage,
    *,
    from_scratch: bool,
    train_middle_block: bool,
    rates: Mapping[str, float] | None = None,
) -> None:
    """Set `requires_grad` of every parameter. Of a U-Net with low-rank additions these alone train, where it trains;
    a part whose rate is 0 does not."""
    has_lora = any(is_low_rank(name) for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        trainable = is_trainable(name, stage, from_scratch=from_scratch, train_middle_block=train_middle_block)
        if has_lora and name.startswith("unet."):
            trainable = trainable and is_low_rank(name)
        has_rate = rates is None or rates.get(name.partition(".")[0], 0.0) > 0
        parameter.requires_grad_(trainable and has_rate)


def is_low_rank(name: str) -> bool:
    """Whether a parameter is one of those that `imprint.models.lora` adds."""
    return ".lora_" in name


def build_parameter_groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict]:
    """One optimizer group per part with trainable parameters, with the part's peak rate (`rates`: part => rate)."""
    groups = []
    for part in PARTS:
        module = getattr(model, part, None)  # a part that the model has not
        named = [] if module is None else module.named_parameters()
        parameters = [parameter for _, parameter in named if parameter.requires_grad]
        if parameters:
            groups.append({"name": part, "params": parameters, "lr": rates[part], "peak_lr": rates[part]})
    return groups
