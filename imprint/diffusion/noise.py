"""Generators keyed by integers, and noise that does not depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.core.files import compute_digest


def build_generator(*keys: int | str) -> torch.Generator:
    """A CPU generator that is a function of its keys alone, such as (seed, step) or (seed, case)."""
    seed = int(compute_digest("\0".join(str(key) for key in keys))[:15], 16)
    return torch.Generator("cpu").manual_seed(seed)


def build_generators(count: int, *keys: int | str) -> list[torch.Generator]:
    """One generator per sample: sample i of any batch gets the same one."""
    return [build_generator(*keys, index) for index in range(count)]


def sample_noise(
    shape_chw: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Float[Tensor, "b c h w"]:
    """Standard normal noise, one sample per generator. Drawn on the CPU, so that CPU and GPU see the same noise."""
    return torch.stack([torch.randn(shape_chw, generator=generator) for generator in generators]).to(device)
