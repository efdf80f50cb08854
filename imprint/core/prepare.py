"""The one preparation path: object image, background and mask => model input, and the result pasted back.

Mining's crops, training, evaluation, the command, the page and the served model all call these functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from imprint.core.errors import InputError
from imprint.core.foreground import estimate_foreground
from imprint.core.geometry import Box, box_from_mask, crop_padded, square_around, square_crop
from imprint.core.masks import feather_inside
from imprint.core.params import PackShards
from imprint.core.pixels import MID_GREY, encode_image, resize_image, resize_mask

OBJECT_MARGIN = 1.1  # side of the reference canvas / longer side of the object
SCENE_CONTEXT = 2.0  # side of the scene crop / longer side of the object or hole
FEATHER_SHARE = 0.02  # width of the composite's feather / side of the scene crop


@dataclass(frozen=True)
class SceneCrop:
    """A square piece of a background at the model's size.

    image: RGB uint8 [size_px, size_px, 3]; hole: bool [size_px, size_px], true where the object goes;
    box: the square in pixels of the whole background (it may stick out).
    """

    image: np.ndarray
    hole: np.ndarray
    box: Box


def crop_object(image: np.ndarray, mask: np.ndarray, size_px: int) -> np.ndarray:
    """Reference canvas of one object: RGBA uint8 [size_px, size_px, 4], centred, black and transparent outside.

    image: RGB uint8 [h, w, 3]; mask: bool [h, w], or opacity as uint8 [h, w]. The object fills the canvas up to
    a margin of 5 % on each side. A bool mask says nothing of the edge's mixed pixels, so their colours are estimated;
    with an opacity the colours are taken as the object's own. `InputError` for an empty mask.
    """
    alpha = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
    box = box_from_mask(alpha > 127)
    square = square_around(box, compute_canvas_px(alpha))
    colours, opacity = crop_padded(image, square, edge=True), crop_padded(alpha, square)
    if mask.dtype == bool:
        colours = estimate_foreground(colours, opacity > 0)
    canvas = np.dstack([colours, opacity])
    canvas[opacity == 0] = 0
    return _resize_premultiplied(canvas, size_px)


def compute_canvas_px(alpha: np.ndarray) -> int:
    """Side of an object's canvas at its own size; alpha: its opacity, uint8 [h, w]. `InputError` for an empty one."""
    box = box_from_mask(alpha > 127)
    if box.area_px == 0:
        raise InputError("the object has no pixels; give an object image whose mask or alpha channel is not empty")
    return max(int(np.ceil(OBJECT_MARGIN * max(box.height_px, box.width_px))), 1)


def crop_detail(canvas: np.ndarray, size_px: int) -> np.ndarray:
    """The most detailed square of an object's canvas RGBA uint8 [h, w, 4]: RGBA uint8 [size_px, size_px, 4].

    Where the Laplacian of the colours, weighted by opacity, has most energy; of equals the first. Not scaled, so that a
    canvas of twice the reference's side shows twice as fine.
    """
    colours = canvas[..., :3] * (canvas[..., 3:].astype(np.float32) / 255.0)
    edges = cv2.Laplacian(colours, cv2.CV_32F)
    opaque = cv2.erode(canvas[..., 3], np.ones((3, 3), np.uint8)) > 127  # the outline is no detail
    energy = cv2.integral(np.square(edges).sum(axis=-1) * opaque)
    sums = energy[size_px:, size_px:] - energy[:-size_px, size_px:] - energy[size_px:, :-size_px]
    sums += energy[:-size_px, :-size_px]
    y0, x0 = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return canvas[y0 : y0 + size_px, x0 : x0 + size_px]


def crop_scene(image: np.ndarray, hole: np.ndarray, size_px: int, context: float = SCENE_CONTEXT) -> SceneCrop:
    """Square piece of `image` RGB uint8 [h, w, 3] around `hole` bool [h, w], scaled to the model's size.

    The crop has `context` times the hole's longer side and at least `size_px` where the image allows it, so that a
    background of the model's own size is taken whole and untouched.
    """
    box = square_crop(box_from_mask(hole), image.shape[:2], context, min_side_px=size_px)
    size_hw = (size_px, size_px)
    cropped_hole = resize_mask(crop_padded(hole, box, fill=0), size_hw)
    return SceneCrop(image=resize_image(crop_padded(image, box, edge=True), size_hw), hole=cropped_hole, box=box)


def list_object_crops(canvas: np.ndarray, *, detail: bool) -> list[np.ndarray]:
    """What the encoder is shown of one view's canvas RGBA uint8: the whole object, as in the paper; with `detail` the
    canvas has twice the encoder's side, and the most detailed quarter of it follows the whole."""
    if not detail:
        return [canvas]
    size_px = canvas.shape[0] // 2
    return [_resize_premultiplied(canvas, size_px), crop_detail(canvas, size_px)]


def fill_hole(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Scene RGB uint8 [h, w, 3] with the hole in mid-grey: what the codec may see of the background."""
    return np.where(hole[..., None], np.uint8(MID_GREY), image)


def check_outside(result: np.ndarray, background: np.ndarray, hole: np.ndarray) -> None:
    """RuntimeError if a pixel outside `hole` is not the background's: what is promised is looked at, each time."""
    changed = int((result != background).any(axis=-1)[~hole].sum())
    if changed:
        raise RuntimeError(f"{changed} pixels outside the hole changed")


def paste_scene(background: np.ndarray, hole: np.ndarray, generated: np.ndarray, box: Box) -> np.ndarray:
    """Feathered composite of a generated scene crop into the background, at the background's own size.

    background: RGB uint8 [h, w, 3]; hole: bool [h, w]; generated: RGB uint8 [size_px, size_px, 3] of the square `box`.
    Every pixel outside the hole is bit-identical to the background; the feather lies inside the hole.
    """
    side_px = box.height_px
    patch = resize_image(generated, (side_px, side_px)).astype(np.float32)
    height, width = background.shape[:2]
    inside = Box(max(box.y0, 0), max(box.x0, 0), min(box.y1, height), min(box.x1, width))
    patch = patch[inside.y0 - box.y0 : inside.y1 - box.y0, inside.x0 - box.x0 : inside.x1 - box.x0]
    weight = feather_inside(hole, FEATHER_SHARE * side_px)[inside.slices][..., None]
    below = background[inside.slices]
    blended = np.rint(weight * patch + (1.0 - weight) * below.astype(np.float32)).astype(np.uint8)
    result = background.copy()
    result[inside.slices] = np.where(hole[inside.slices][..., None], blended, below)
    return result


def _resize_premultiplied(rgba: np.ndarray, size_px: int) -> np.ndarray:
    """Scale colours weighted by opacity, so that the black outside does not darken the object's rim."""
    if rgba.shape[:2] == (size_px, size_px):
        return rgba
    opacity = rgba[..., 3:].astype(np.float32) / 255.0
    colours = np.ascontiguousarray(rgba[..., :3] * opacity)
    small_colours = resize_image(colours, (size_px, size_px))
    small_opacity = resize_image(opacity, (size_px, size_px)).reshape(
        size_px, size_px, 1
    )  # overshoots as the colours do
    visible = small_opacity > 0.5 / 255.0  # what does not round to fully transparent
    straight = np.where(visible, small_colours / np.where(visible, small_opacity, 1.0), 0.0)
    return np.rint(np.clip(np.dstack([straight, small_opacity * 255.0]), 0, 255)).astype(np.uint8)


def encode_view(image: np.ndarray, mask: np.ndarray, params: PackShards) -> tuple[bytes, bytes, bytes]:
    """RGB frame and the object's mask bool [h, w] => bytes of object, scene and mask, as shards hold them."""
    scene = crop_scene(image, mask, params.size_px, params.scene_context)
    return (
        encode_image(crop_object(image, mask, params.reference_px), ".png"),
        encode_image(scene.image, ".jpg", params.jpeg_quality),
        encode_image(scene.hole, ".png"),
    )
