"""From fields, a reference and a background to a picture, at whatever places of the scene crop are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from imprint.appearance.fields import Fields


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """At the asked places. colour: of the object, in its light, 0-1; opacity: of the object, 0-1, not cut at the hole;
    shade: the share of the background's light that is left, 0-1."""

    colour: Float[Tensor, "b 3 h w"]
    opacity: Float[Tensor, "b 1 h w"]
    shade: Float[Tensor, "b 3 h w"]

    def put_on(self, background: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The object on the shaded background, both 0-1."""
        return self.opacity * self.colour + (1.0 - self.opacity) * background * self.shade


def build_grid(height_px: int, width_px: int, device: torch.device | None = None) -> Float[Tensor, "1 h w 2"]:
    """Coordinates (x, y) of the pixels' centres of a whole crop."""
    ys = (2 * torch.arange(height_px, device=device) + 1) / height_px - 1
    xs = (2 * torch.arange(width_px, device=device) + 1) / width_px - 1
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]


def render(
    fields: Fields, reference: Float[Tensor, "b 4 r r"], grid: Float[Tensor, "1 h w 2"], *, mode: str = "bilinear"
) -> Rendering:
    """reference: RGBA 0-1, colours premultiplied by the opacity; mode: how it is sampled, `bilinear` or `bicubic`."""
    warped = warp_reference(fields, reference, grid, mode=mode)
    opacity = warped[:, 3:].clamp(0.0, 1.0)
    colour = (warped[:, :3] / opacity.clamp(min=1e-3)).clamp(0.0, 1.0)
    gain = enlarge(fields.gain, grid, mode="bicubic")
    return Rendering(
        colour=change_light(colour, gain), opacity=opacity, shade=torch.exp(-enlarge(fields.shadow, grid).clamp(min=0))
    )


def compute_behind(
    fields: Fields,
    background: Float[Tensor, "b 3 h w"],
    hidden_hole: Bool[Tensor, "b 1 h w"],
    grid: Float[Tensor, "1 h w 2"],
) -> Float[Tensor, "b 3 h w"]:
    """What stands behind the object: the background, and where the hole's content is hidden what the network makes of
    its surroundings. Both 0-1."""
    filled = fill_smoothly(background, hidden_hole) + enlarge(fields.fill, grid)
    return torch.where(hidden_hole, filled, background)


def warp_reference(
    fields: Fields, reference: Float[Tensor, "b c r r"], grid: Float[Tensor, "1 h w 2"], *, mode: str = "bilinear"
) -> Float[Tensor, "b c h w"]:
    """What the flow brings to the places of the grid; nothing where it points beside the reference."""
    flow = enlarge(fields.flow, grid, mode="bicubic").permute(0, 2, 3, 1)
    points = apply_affine(fields.affine, grid) + flow
    return F.grid_sample(reference, points, mode=mode, padding_mode="zeros", align_corners=False)


def apply_affine(affine: Float[Tensor, "b 2 3"], grid: Float[Tensor, "1 h w 2"]) -> Float[Tensor, "b h w 2"]:
    """The grid's points, mapped."""
    return torch.einsum("bij,zhwj->bhwi", affine[:, :, :2], grid) + affine[:, None, None, :, 2]


def enlarge(
    field: Float[Tensor, "b c g g"], grid: Float[Tensor, "1 h w 2"], *, mode: str = "bilinear"
) -> Float[Tensor, "b c h w"]:
    """A coarse field at the places of the grid, smoothly; beyond its outermost centres as there."""
    places = grid.expand(len(field), -1, -1, -1)
    return F.grid_sample(field, places, mode=mode, padding_mode="border", align_corners=False)


def change_light(colour: Float[Tensor, "b 3 h w"], log_gain: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Colours 0-1 under more or less light. Less is multiplied; more is multiplied in the dark, and comes to white
    slowly, so that nothing is cut off and white stays white."""
    darker = colour * torch.exp(log_gain.clamp(max=0.0))
    brighter = 1.0 - (1.0 - darker).clamp(min=1e-4) ** torch.exp(log_gain.clamp(min=0.0))
    return torch.where(log_gain > 0, brighter, darker)


def restrain_light(fields: Fields, opacity: Float[Tensor, "b 1 h w"], share: float) -> Fields:
    """The fields with only a `share` of the gain's mean over the object and the colours: bright things are taken for
    too brightly lit, dark ones for too dark, since nobody can tell the two from one picture. What differs from place to
    place, and from colour to colour, stays."""
    weight = F.adaptive_avg_pool2d(opacity, fields.gain.shape[-1])
    sums = (fields.gain * weight).sum(dim=(1, 2, 3), keepdim=True)
    mean = sums / (3.0 * weight.sum(dim=(1, 2, 3), keepdim=True)).clamp(min=1e-3)
    return replace(fields, gain=fields.gain - (1.0 - share) * mean)


def fill_smoothly(picture: Float[Tensor, "b 3 h w"], hole: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The picture with the hole as a smooth continuation of what is around it (push and pull over a pyramid); what the
    hole holds is not seen."""
    keep = (~hole).to(picture.dtype)
    height, width = picture.shape[2:]
    if max(height, width) == 1:
        return picture * keep
    sums, counts = (F.avg_pool2d(values, 2, ceil_mode=True) for values in (picture * keep, keep))
    coarse = fill_smoothly(sums / counts.clamp(min=1e-6), counts <= 0)
    return torch.where(hole, F.interpolate(coarse, size=(height, width), mode="bilinear"), picture)
