"""Where the object would be pasted: the start that the flow is relative to, and what it sees of the reference."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.core.masks import MASK_LEVELS

ROOMY_LEVELS = [MASK_LEVELS.index(level) for level in ("coarse", "box")]
ROOM_SHARE = 0.1  # of the hole's side that a roomy level leaves free beside the object, on each side


def find_boxes(masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 4"]:
    """Left, top, right, bottom of the true pixels, in coordinates from -1 to 1; the whole for an empty mask."""
    height, width = masks.shape[1:]
    ends = []
    for axis, size in ((1, width), (2, height)):
        seen = masks.any(dim=axis)
        seen = seen | ~seen.any(dim=1, keepdim=True)
        first = seen.float().argmax(dim=1)
        last = size - seen.flip(1).float().argmax(dim=1)
        ends += [2.0 * first / size - 1.0, 2.0 * last / size - 1.0]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], dim=1)


def compute_placement(
    opacity: Float[Tensor, "b 1 r r"], hole: Bool[Tensor, "b 1 h w"], level: Int[Tensor, " b"] | None
) -> Float[Tensor, "b 2 3"]:
    """Scene coordinates => reference coordinates of a plain paste: the object as large as the hole's box takes it, its
    shape kept, in the middle; for `coarse` and `box` a tenth smaller on each side and standing at the bottom."""
    thing, place = find_boxes(opacity[:, 0] > 0.5), find_boxes(hole[:, 0])
    thing_size, place_size = thing[:, 2:] - thing[:, :2], place[:, 2:] - place[:, :2]
    roomy = torch.zeros(len(hole), dtype=torch.bool, device=hole.device)
    if level is not None:
        roomy = torch.isin(level, torch.tensor(ROOMY_LEVELS, device=level.device))
    room = torch.where(roomy, 1.0 - 2.0 * ROOM_SHARE, 1.0)[:, None]
    scale = (room * place_size / thing_size).amin(dim=1, keepdim=True)  # scene units per reference unit
    middle = (place[:, :2] + place[:, 2:]) / 2
    low = place[:, 3] - (1.0 - room[:, 0]) / 4 * place_size[:, 1] - scale[:, 0] * thing_size[:, 1] / 2
    middle = torch.stack([middle[:, 0], torch.where(roomy, low, middle[:, 1])], dim=1)
    shift = (thing[:, :2] + thing[:, 2:]) / 2 - middle / scale
    zero = torch.zeros_like(scale[:, 0])
    rows = [(1 / scale[:, 0], zero, shift[:, 0]), (zero, 1 / scale[:, 0], shift[:, 1])]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
