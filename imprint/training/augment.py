"""Changes of a reference image: affine, colour and light (paper: stage 2's single images)."""

from __future__ import annotations

import kornia.augmentation as kornia_augmentation
import torch
from jaxtyping import Float
from torch import Tensor

_AFFINE = {"degrees": 15.0, "translate": (0.05, 0.05), "scale": (0.85, 1.1), "shear": 8.0}


def augment_reference(
    reference: Float[Tensor, "b 3 r r"],
    opacity: Float[Tensor, "b 1 r r"],
    *,
    affine: bool,
    colour_jitter: float,
    seed: int,
) -> Float[Tensor, "b 3 r r"]:
    """Reference on black in [-1, 1], changed per sample; black stays black. A function of the inputs and the seed.

    colour_jitter: 0-1, the largest relative change of brightness, contrast, saturation and light; hue changes by a
    quarter of it at most.
    """
    rgba = torch.cat([reference * 0.5 + 0.5, opacity], dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # kornia draws from the global generator
        if affine:
            rgba = kornia_augmentation.RandomAffine(**_AFFINE, p=1.0)(rgba)
        colours = rgba[:, :3]
        if colour_jitter > 0:
            colours = _change_colour_and_light(colours, colour_jitter)
    return torch.where(rgba[:, 3:] > 0, colours, 0.0) * 2.0 - 1.0


def _change_colour_and_light(colours: Tensor, strength: float) -> Tensor:
    change_colour = kornia_augmentation.ColorJitter(strength, strength, strength, min(strength / 4, 0.5))
    change_light = kornia_augmentation.RandomLinearIllumination(gain=(0.0, strength), p=0.5)
    return change_light(change_colour(colours)).clamp(0.0, 1.0)
