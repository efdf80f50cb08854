"""What is drawn for the diffusion of a batch: a function of (seed, position) per sample, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.diffusion import NUM_TIMESTEPS, build_generator


@dataclass(frozen=True, kw_only=True)
class Noising:
    """timestep: 0 to 999; is_null: the object is replaced by the null token, for guidance."""

    timestep: Int[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    is_null: Bool[Tensor, " b"]


def draw_noising(
    position: Int[Tensor, " b"],
    *,
    shape_chw: tuple[int, int, int],
    seed: int,
    null_rate: float,
    timestep_shift: Sequence[float] | float = 1.0,
) -> Noising:
    """Noise, a timestep and the null draw of the samples at `position`, on their device.

    Timesteps are uniform for a `timestep_shift` s of 1; a share u of the way becomes s * u / (1 + (s - 1) * u) (Esser
    et al. 2024), so that with 3 half of them are above 750 of 1000: there the object has to come from the reference.
    One shift for all samples, or one for each.
    """
    shifts = [timestep_shift] * len(position) if isinstance(timestep_shift, int | float) else timestep_shift
    timesteps, noises, nulls = [], [], []
    for key, shift in zip(position.tolist(), shifts, strict=True):
        generator = build_generator(seed, "noising", key)
        share = (torch.randint(NUM_TIMESTEPS, (), generator=generator).double() + 0.5) / NUM_TIMESTEPS
        shifted = shift * share / (1.0 + (shift - 1.0) * share)
        timesteps.append((shifted * NUM_TIMESTEPS).long())
        nulls.append(torch.rand((), generator=generator) < null_rate)
        noises.append(torch.randn(shape_chw, generator=generator))
    device = position.device
    return Noising(
        timestep=torch.stack(timesteps).to(device),
        noise=torch.stack(noises).to(device),
        is_null=torch.stack(nulls).to(device),
    )


def fix_noising(position: Int[Tensor, " b"], *, shape_chw: tuple[int, int, int], seed: int) -> Noising:
    """For validation: the same noise at every call, timesteps from few to many in turn, no null token."""
    drawn = draw_noising(position, shape_chw=shape_chw, seed=seed, null_rate=0.0)
    # the golden ratio's multiples fill [0, 1) evenly, however many samples there are
    share = (position.double() * 0.6180339887498949 + 0.5) % 1.0
    return Noising(timestep=(share * NUM_TIMESTEPS).long(), noise=drawn.noise, is_null=drawn.is_null)
