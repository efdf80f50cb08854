"""The appearance flow's picture at the background's own size: coarse fields, the reference as it was given.

Beyond the paper. The object's pixels are the reference's; the background's are multiplied by the shadow (`insert`) or,
in the hole, made anew from its surroundings (`replace`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from imprint.appearance import Fields, Rendering, build_grid, compute_behind, fill_smoothly, render
from imprint.core.geometry import Box, box_from_mask, expand_box
from imprint.core.masks import feather_inside
from imprint.core.prepare import FEATHER_SHARE, compute_canvas_px, crop_object

EDGE_PX = 1.0  # over which the object is cut at the hole's outline
VISIBLE_SHADOW = 0.08  # share of the light taken away
CHUNK_PX = 1 << 20  # pixels rendered at once, which bounds the memory


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a picture is rendered: the crop's square `box` and the part `region` of it, in the background's pixels."""

    box: Box
    region: Box

    def build_grid(self, rows: slice) -> Tensor:
        """Coordinates in the crop of the region's pixels in some of its rows."""
        whole = build_grid(self.region.height_px, self.region.width_px)[:, rows]
        corner = torch.tensor([self.region.x0 - self.box.x0, self.region.y0 - self.box.y0])
        extent = torch.tensor([self.region.width_px, self.region.height_px])
        pixels = corner + (whole + 1.0) / 2.0 * extent
        return pixels / self.box.height_px * 2.0 - 1.0


def render_native(
    fields: Fields,
    view: np.ndarray,
    background: np.ndarray,
    hole: np.ndarray,
    *,
    box: Box,
    replaces: bool,
    shadow_reach: float = 0.0,
) -> np.ndarray:
    """RGB float32 [h, w, 3], 0-255, like `background`, equal to it outside the hole but for the shadow's reach.

    fields: of one request; view: RGBA uint8, the object as it was given; hole: bool [h, w]; box: of the scene crop;
    replaces: the hole's content is not looked at; shadow_reach: how far the shadow may leave the hole, in its longer
    sides; 0: it ends softly at the hole's edge, within.
    """
    hole_box = box_from_mask(hole)
    reach_px = round(shadow_reach * max(hole_box.height_px, hole_box.width_px))
    region = _clip(expand_box(hole_box, reach_px, hole.shape), box)
    place = Place(box=box, region=region)
    reference = prepare_reference(fields, view, box)
    behind = _build_behind(fields, background, hole, place) if replaces else background[region.slices]
    object_weight, shadow_weight = weigh(hole, box, reach_px=reach_px)
    result = background.astype(np.float32)
    step = max(1, CHUNK_PX // region.width_px)
    for start in range(0, region.height_px, step):
        rows = slice(start, min(start + step, region.height_px))
        rendering = render(fields, reference, place.build_grid(rows), mode="bicubic")
        weights = [weight[region.slices][rows] for weight in (object_weight, shadow_weight)]
        target = slice(region.y0 + rows.start, region.y0 + rows.stop), region.slices[1]
        result[target] = _put_together(rendering, behind[rows].astype(np.float32), *weights)
    return result


def prepare_reference(fields: Fields, view: np.ndarray, box: Box) -> Tensor:
    """[1, 4, r, r] RGBA 0-1, premultiplied: the object's canvas at its own size, or at about that of the picture's
    pixels where that is smaller (an average, so that fine detail does not alias)."""
    own_px = compute_canvas_px(view[..., 3])
    map_area = float(torch.linalg.det(fields.affine[0, :, :2]).abs())
    wanted_px = int(np.ceil(box.height_px / max(map_area, 1e-6) ** 0.5))
    canvas = crop_object(view[..., :3], view[..., 3], max(8, min(own_px, wanted_px)))
    return premultiply(canvas)


def premultiply(canvas: np.ndarray) -> Tensor:
    """RGBA uint8 [r, r, 4] => [1, 4, r, r], 0-1, the colours multiplied by the opacity."""
    values = torch.from_numpy(canvas.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    return torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], dim=1)


def weigh(hole: np.ndarray, box: Box, *, reach_px: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [h, w], 0-1: how much of the object and of its shadow stands where. The object ends at the hole's
    outline, the shadow before it, softly, or `reach_px` behind it."""
    object_weight = feather_inside(hole, EDGE_PX)
    if reach_px <= 0:
        return object_weight, feather_inside(hole, FEATHER_SHARE * box.height_px)
    distance_px = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, 5)
    share = np.clip(1.0 - distance_px / reach_px, 0.0, 1.0).astype(np.float32)
    return object_weight, share * share * (3.0 - 2.0 * share)


def render_small(fields: Fields, view: np.ndarray, *, reference_px: int, size_px: int) -> Rendering:
    """The whole crop at the model's size; view: RGBA uint8."""
    reference = premultiply(crop_object(view[..., :3], view[..., 3], reference_px))
    return render(fields, reference, build_grid(size_px, size_px))


def place_outline(opacity: Tensor, image_hw: tuple[int, ...], box: Box) -> np.ndarray:
    """float32 [h, w], 0-1: a small rendering's opacity [1, 1, s, s] in its place in the background."""
    side_px = box.height_px
    opacity_px = cv2.resize(opacity[0, 0].numpy(), (side_px, side_px), interpolation=cv2.INTER_LINEAR)
    height, width = image_hw[:2]
    whole = np.zeros((height, width), np.float32)
    inside = _clip(Box(0, 0, height, width), box)
    shifted = Box(inside.y0 - box.y0, inside.x0 - box.x0, inside.y1 - box.y0, inside.x1 - box.x0)
    whole[inside.slices] = opacity_px[shifted.slices]
    return whole


def compute_cut_shadow(small: Rendering, hole: np.ndarray) -> float:
    """The share of the shadow beside the object that lies outside the hole bool [s, s] of the crop, 0-1."""
    shadow = ((1.0 - small.shade.mean(dim=1)) * (1.0 - small.opacity[:, 0]))[0].numpy()
    shadow = np.where(shadow > VISIBLE_SHADOW, shadow, 0.0)
    return float(shadow[~hole].sum() / max(float(shadow.sum()), 1e-6))


def hide_hole(background: np.ndarray, hole: np.ndarray, box: Box) -> np.ndarray:
    """RGB uint8 like `background`, with the hole as a smooth continuation of what is around it in the square `box`."""
    around = _clip(Box(0, 0, *hole.shape), box)
    picture = torch.from_numpy(background[around.slices].astype(np.float32)).permute(2, 0, 1)[None]
    hidden = torch.from_numpy(np.ascontiguousarray(hole[around.slices]))[None, None]
    result = background.copy()
    filled = fill_smoothly(picture, hidden)[0].permute(1, 2, 0).numpy()
    result[around.slices] = np.where(hole[around.slices][..., None], np.rint(filled), result[around.slices])
    return result


def _put_together(
    rendering: Rendering, behind: np.ndarray, object_weight: np.ndarray, shadow_weight: np.ndarray
) -> np.ndarray:
    """RGB float32 [h, w, 3], 0-255."""
    colour, opacity, shade = (
        np.moveaxis(value[0].numpy(), 0, -1) for value in (rendering.colour, rendering.opacity, rendering.shade)
    )
    opacity = opacity * object_weight[..., None]
    shaded = behind * shade ** shadow_weight[..., None]
    return opacity * colour * 255.0 + (1.0 - opacity) * shaded


def _build_behind(fields: Fields, background: np.ndarray, hole: np.ndarray, place: Place) -> np.ndarray:
    """RGB float32 of the region, 0-255: the background with the hole filled anew."""
    around = _clip(Box(0, 0, *hole.shape), place.box)  # what the fill continues
    wide = Place(box=place.box, region=around)
    picture = torch.from_numpy(background[around.slices].astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    hidden = torch.from_numpy(np.ascontiguousarray(hole[around.slices]))[None, None]
    filled = compute_behind(fields, picture, hidden, wide.build_grid(slice(0, around.height_px)))
    values = filled[0].permute(1, 2, 0).numpy().clip(0.0, 1.0) * 255.0
    y0, x0 = place.region.y0 - around.y0, place.region.x0 - around.x0
    return values[y0 : y0 + place.region.height_px, x0 : x0 + place.region.width_px]


def _clip(inner: Box, outer: Box) -> Box:
    return Box(max(inner.y0, outer.y0), max(inner.x0, outer.x0), min(inner.y1, outer.y1), min(inner.x1, outer.x1))
