"""AdamW over the parts' groups, the learning rate as a function of the step, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imprint.core.errors import InputError
from imprint.core.params import Training
from imprint.models.freezing import build_parameter_groups


def build_optimizer(model: nn.Module, params: Training) -> torch.optim.Optimizer:
    """AdamW with one group per trainable part; `set_rates` gives the rates. `InputError` where one is not installed."""
    groups = build_parameter_groups(model, params.learning_rate.model_dump())
    settings = {"betas": (0.9, 0.99), "weight_decay": params.weight_decay}
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "optimizer: adamw-8bit needs bitsandbytes, which is not installed; "
            "`pip install 'imprint-pipeline[low-memory]'`, or set optimizer: adamw"
        ) from None
    if not torch.cuda.is_available():
        raise InputError("optimizer: adamw-8bit needs a CUDA GPU, and torch sees none; set optimizer: adamw")
    return AdamW8bit(groups, **settings)


def compute_rate_factor(step: int, *, warmup_steps: int, max_steps: int, time_share: float = 0.0) -> float:
    """Share of the peak rate at `step`: linear warm-up, and a cosine that is zero at the end, whichever comes first:
    `max_steps`, or a `time_share` of 1 (of the time that is allowed, how much is gone; 0: there is no limit)."""
    rise = min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    progress = max((step - warmup_steps) / max(max_steps - warmup_steps, 1), time_share)
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def compute_expected_steps(step: int, *, max_steps: int, time_share: float) -> float:
    """After how many steps the run ends, going on as it went: `max_steps`, or fewer where the time ends first."""
    return step / time_share if time_share * max_steps > step else max_steps


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate as a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def get_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name => parameter that trains."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def compute_ema_decay(step: int, *, halflife_share: float, max_steps: float) -> float:
    """Decay of the weights' average at `step` (from 1). The half-life is a share of the run's length, with a warm-up:

    a half-life near the run's length would make short runs look worse than they are.
    """
    halflife_steps = halflife_share * max_steps
    decay = 0.5 ** (1.0 / halflife_steps) if halflife_steps > 0 else 0.0
    return min(decay, (1.0 + step) / (10.0 + step))


@torch.no_grad()
def update_ema(ema: Mapping[str, Tensor], parameters: Mapping[str, Tensor], decay: float) -> None:
    """ema = decay * ema + (1 - decay) * weights, in place; both have the same names in the same order."""
    torch._foreach_lerp_(list(ema.values()), [value.detach() for value in parameters.values()], 1.0 - decay)


@contextmanager
def averaged_weights(model: nn.Module, parameters: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the model has the averaged weights and is in evaluation mode."""
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    copy_weights(parameters, ema)
    model.eval()
    try:
        yield
    finally:
        copy_weights(parameters, kept)
        model.train()


@torch.no_grad()
def copy_weights(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Overwrite the parameters named in `values`, in place."""
    for name, value in values.items():
        parameters[name].copy_(value)
