"""What the fields are trained by: the picture, the object's outline, the background beside it, and restraint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.appearance.fields import Fields
from imprint.appearance.rendering import Rendering
from imprint.core.masks import MASK_LEVELS

_LEVELS, _SHADOW_LEVELS = 4, 3
_VISIBLE = 0.03  # a difference between plate and scene, 0-1, that counts as shadow
_FIRMNESS = {"exact": 0.25, "soft": 0.5, "coarse": 1.0, "box": 1.0}  # an outline is to be filled, a box is only room
_SHADED, _UNSHADED = 1.15, 0.15  # weights of the background where there is a shadow and where there is none


@dataclass(frozen=True, kw_only=True)
class FlowWeights:
    """Of the parts of the loss; ours, found by trial (docs/log.md)."""

    opacity: float = 1.0
    background: float = 1.0
    hidden_background: float = 0.5
    bend: float = 0.3  # mean squared slope of the flow, relative to the paste's scale
    strain: float = 0.3  # squared stretch and shear of the affine map
    turn: float = 0.03  # its squared turn
    reach: float = 0.02  # mean squared flow: what all of the object does is the affine map's
    uneven_gain: float = 0.003  # mean squared slope of the gain
    gain: float = 0.05  # squared mean of the gain
    expected_error: float = 0.01


def compute_flow_losses(
    fields: Fields,
    rendering: Rendering,
    *,
    background: Float[Tensor, "b 3 s s"],
    scene: Float[Tensor, "b 3 s s"],
    mask: Bool[Tensor, "b 1 s s"],
    hole: Bool[Tensor, "b 1 s s"],
    has_plate: Bool[Tensor, " b"],
    level: Int[Tensor, " b"],
    weights: FlowWeights,
) -> Float[Tensor, " b"]:
    """Loss per sample. Pictures are 0-1; background: what stands behind the object, the plate or the filled hole;
    has_plate: the background is the scene without the object, so that its shadow is known everywhere: from these alone
    shadows are learned."""
    inside, thing = hole.float(), mask.float()
    rendering = replace(rendering, shade=_teach_where(has_plate, rendering.shade))
    picture = pyramid_l1(rendering.put_on(background), scene, inside, levels=_LEVELS)
    outline = pyramid_l1(rendering.opacity, thing, torch.ones_like(inside), levels=_LEVELS)
    behind = _compute_background_loss(rendering, background, scene=scene, thing=thing, inside=inside, known=has_plate)
    of_picture = picture + weights.opacity * outline
    surprise = (fields.log_error - torch.log(of_picture.detach() + 1e-4)).abs()
    share = torch.where(has_plate, weights.background, weights.hidden_background)
    firmness = torch.tensor([_FIRMNESS[name] for name in MASK_LEVELS], device=level.device)[level]
    restraint = (
        firmness * _compute_distortion(fields, weights)
        + weights.reach * _mean_square(fields.flow)
        + weights.uneven_gain * _mean_square_slope(fields.gain)
        + weights.gain * fields.gain.mean(dim=(2, 3)).square().mean(dim=1)
    )
    return of_picture + share * behind + restraint + weights.expected_error * surprise


def _teach_where(known: Bool[Tensor, " b"], shade: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    """What is behind the object is made up where no plate is known, and says nothing about the shadow on it."""
    return torch.where(known[:, None, None, None], shade, shade.detach())


def _compute_background_loss(
    rendering: Rendering, background: Tensor, *, scene: Tensor, thing: Tensor, inside: Tensor, known: Tensor
) -> Float[Tensor, " b"]:
    """Of the shaded background where the object is not: over the whole picture where the plate is known, the shadow
    counting most; else in the hole."""
    shaded = background * rendering.shade
    beside = 1.0 - thing
    visible = (background - scene).abs().mean(dim=1, keepdim=True) > _VISIBLE
    by_shadow = beside * torch.where(visible, _SHADED, _UNSHADED)
    weight = torch.where(known[:, None, None, None], by_shadow, beside * inside)
    return pyramid_l1(shaded, scene, weight, levels=_SHADOW_LEVELS)


def pyramid_l1(
    first: Float[Tensor, "b c s s"], second: Float[Tensor, "b c s s"], weight: Float[Tensor, "b 1 s s"], *, levels: int
) -> Float[Tensor, " b"]:
    """Weighted mean absolute difference, over a pyramid whose coarser levels count more, by the root of 2 each."""
    difference = (first - second) * weight
    total, norm = 0.0, weight.mean(dim=(1, 2, 3)).clamp(min=1e-3)
    for level in range(levels):
        total = total + 2.0 ** (level / 2) * difference.abs().mean(dim=(1, 2, 3))
        if level + 1 < levels:
            difference = F.avg_pool2d(difference, 2)
    assert isinstance(total, Tensor)
    return total / (norm * sum(2.0 ** (level / 2) for level in range(levels)))


def _compute_distortion(fields: Fields, weights: FlowWeights) -> Float[Tensor, " b"]:
    """What bends, stretches or turns the object. Moving it and its size are free: on objects never seen, all of the
    rest brings a tenth of a decibel, and the eye takes it for a fault (docs/log.md)."""
    scale = fields.placement[:, 0, 0]
    change = fields.affine[:, :, :2] / scale[:, None, None]
    stretch, shear = change[:, 0, 0] - change[:, 1, 1], change[:, 0, 1] + change[:, 1, 0]
    turn = change[:, 1, 0] - change[:, 0, 1]
    of_map = weights.strain * (stretch.square() + shear.square()) + weights.turn * turn.square()
    return of_map + weights.bend * _mean_square_slope(fields.flow) / scale.square()


def _mean_square(values: Tensor) -> Float[Tensor, " b"]:
    return values.flatten(1).square().mean(dim=1)


def _mean_square_slope(field: Float[Tensor, "b c g g"]) -> Float[Tensor, " b"]:
    """Per unit of the crop's coordinates, so that it does not depend on the grid."""
    per_unit = field.shape[-1] / 2
    return sum(_mean_square(torch.diff(field, dim=axis) * per_unit) for axis in (2, 3))  # pyright: ignore[reportReturnType]
