"""Changes of a reference image: affine, colour and light (paper: stage 2's single images)."""

from __future__ import annotations

from typing import Any

import kornia.augmentation as kornia_augmentation
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.appearance.rendering import change_light

# drawn once for a whole batch, unlike all else that kornia draws
_OF_THE_BATCH = {"order", "forward_input_shape"}
_MIDDLE_GREY, _MOST_METERED = 0.45, 1.0  # of the picture's 0-1; logarithm of the largest change
_AFFINE = {"degrees": 15.0, "translate": (0.05, 0.05), "scale": (0.85, 1.1), "shear": 8.0}


def augment_reference(
    reference: Float[Tensor, "b 3 r r"],
    opacity: Float[Tensor, "b 1 r r"],
    *,
    affine: bool,
    colour_jitter: float,
    seed: int,
    first_row: int = 0,
    batch_size: int = 0,
) -> tuple[Float[Tensor, "b 3 r r"], Float[Tensor, "b 1 r r"]]:
    """Reference on black in [-1, 1] and its opacity, changed per sample; black stays black. A function of the inputs
    and the seed.

    colour_jitter: 0-1, the largest relative change of brightness, contrast, saturation and light; hue changes by a
    quarter of it at most. first_row, batch_size: the samples are rows of a larger batch, from that row on, and are
    changed as they would be within it; 0: they are the whole.
    """
    rows, size = slice(first_row, first_row + len(reference)), batch_size or len(reference)
    rgba = torch.cat([reference * 0.5 + 0.5, opacity], dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # kornia draws from the global generator
        if affine:
            rgba = _change(kornia_augmentation.RandomAffine(**_AFFINE, p=1.0), rgba, rows=rows, batch_size=size)
        colours = rgba[:, :3]
        if colour_jitter > 0:
            colours = _change_colour_and_light(colours, colour_jitter, rows=rows, batch_size=size)
    return torch.where(rgba[:, 3:] > 0, colours, 0.0) * 2.0 - 1.0, rgba[:, 3:]


def change_exposure(
    reference: Float[Tensor, "b 3 r r"], *, stops: float, seed: int, first_row: int = 0, batch_size: int = 0
) -> Float[Tensor, "b 3 r r"]:
    """References on black in [-1, 1] as another exposure (up to so many stops more or less) and another white balance
    (a third of that per colour) would have given them; black stays black. first_row, batch_size: as above."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch_size or len(reference), 4, generator=generator)[first_row : first_row + len(reference)]
    drawn = (2.0 * drawn - 1.0) * stops
    factor = 2.0 ** (drawn[:, :1] + drawn[:, 1:] / 3)
    return ((reference + 1.0) * factor.to(reference)[:, :, None, None] - 1.0).clamp(max=1.0)


def meter_scenes(
    scene: Float[Tensor, "b 3 s s"],
    background: Float[Tensor, "b 3 s s"],
    hole: Bool[Tensor, "b 1 s s"],
    *,
    share: float,
    seed: int,
    first_row: int = 0,
    batch_size: int = 0,
) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b 3 s s"]]:
    """Scenes with their backgrounds, in [-1, 1], as a camera's metering would have exposed them: what surrounds the hole
    is brought towards middle grey, by up to `share` of the way. Else a dark ground would pass for little light, and a
    thing put on it would be darkened. first_row, batch_size: as above."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch_size or len(scene), generator=generator)[first_row : first_row + len(scene)]
    beside = (~hole).float()
    brightness = (background * 0.5 + 0.5).mean(dim=1, keepdim=True)
    middle = (brightness * beside).sum(dim=(1, 2, 3)) / beside.sum(dim=(1, 2, 3)).clamp(min=1.0)
    log_gain = share * drawn.to(scene) * torch.log(_MIDDLE_GREY / middle.clamp(min=0.02))
    gain = log_gain.clamp(-_MOST_METERED, _MOST_METERED)[:, None, None, None].expand_as(scene)
    metered, metered_background = (change_light(image * 0.5 + 0.5, gain) * 2 - 1 for image in (scene, background))
    return metered, metered_background


def _change_colour_and_light(colours: Tensor, strength: float, *, rows: slice, batch_size: int) -> Tensor:
    change_colour = kornia_augmentation.ColorJitter(strength, strength, strength, min(strength / 4, 0.5))
    change_light = kornia_augmentation.RandomLinearIllumination(gain=(0.0, strength), p=0.5)
    for change in (change_colour, change_light):
        colours = _change(change, colours, rows=rows, batch_size=batch_size)
    return colours.clamp(0.0, 1.0)


def _change(augmentation: Any, pictures: Tensor, *, rows: slice, batch_size: int) -> Tensor:
    """Draw for all of the batch, and change those of its rows that are given."""
    drawn = augmentation.forward_parameters(torch.Size((batch_size, *pictures.shape[1:])))
    params = {name: value if name in _OF_THE_BATCH else value[rows] for name, value in drawn.items()}
    return augmentation(pictures, params=params)
