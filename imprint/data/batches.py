"""Typed samples and batches of both stages: numpy views => tensors in the model's range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.core.masks import MASK_LEVELS, add_contact_margin, compute_mask_levels, compute_object_size_px
from imprint.core.pixels import put_on_black, resize_image, to_model_range
from imprint.core.prepare import fill_hole, list_object_crops
from imprint.core.records import PairKind
from imprint.data.draws import Draw
from imprint.data.shards import View

PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)


@dataclass(frozen=True, kw_only=True)
class IdentityBatch:
    """Stage 1. Images in [-1, 1], both views of an object on black; position: of the sample in the run.

    kind: index into PAIR_KINDS; opacity: the reference's alpha, 0-1; more, more_opacity: the object's further pictures,
    of which those `present` count (beyond the paper; e is 0 as in the paper).
    """

    position: Int[Tensor, " b"]
    kind: Int[Tensor, " b"]
    reference: Float[Tensor, "b 3 r r"]
    opacity: Float[Tensor, "b 1 r r"]
    more: Float[Tensor, "b e 3 r r"]
    more_opacity: Float[Tensor, "b e 1 r r"]
    present: Bool[Tensor, "b e"]
    target: Float[Tensor, "b 3 s s"]


@dataclass(frozen=True, kw_only=True)
class CompositingBatch:
    """Stage 2. Images in [-1, 1]; scene: the target, with the object in it; hole: true where the model has to paint.

    kind, opacity, more, more_opacity, present: as in `IdentityBatch`; is_single: the reference is the target view
    itself, to be augmented; level: index into MASK_LEVELS; mask: the object's own in the scene; background: what is
    known of the scene without the object, of which the hole's content is grey where it is hidden (`hidden`).
    """

    position: Int[Tensor, " b"]
    kind: Int[Tensor, " b"]
    reference: Float[Tensor, "b 3 r r"]
    opacity: Float[Tensor, "b 1 r r"]
    more: Float[Tensor, "b e 3 r r"]
    more_opacity: Float[Tensor, "b e 1 r r"]
    present: Bool[Tensor, "b e"]
    is_single: Bool[Tensor, " b"]
    scene: Float[Tensor, "b 3 s s"]
    hole: Bool[Tensor, "b 1 s s"]
    level: Int[Tensor, " b"]
    mask: Bool[Tensor, "b 1 s s"]
    background: Float[Tensor, "b 3 s s"]
    hidden: Bool[Tensor, " b"]


Batch = TypeVar("Batch", IdentityBatch, CompositingBatch)


def build_identity_sample(draw: Draw, reference: View, target: View, others: Sequence[View] = ()) -> IdentityBatch:
    """A batch of one; the target is brought to the scene's size."""
    on_black = _put_target_on_black(target)
    return IdentityBatch(
        position=torch.tensor([draw.position]),
        kind=torch.tensor([PAIR_KINDS.index(draw.pair.kind)]),
        **_build_pictures(draw, [reference, *others]),
        target=_to_tensor(_apply(draw, on_black)),
    )


def build_compositing_sample(
    draw: Draw, reference: View, target: View, others: Sequence[View] = ()
) -> CompositingBatch:
    """A batch of one; the hole is the object's mask at the drawn level, with the drawn contact margin.

    A `multiview` pair is stage 1's task in stage 2's terms: the object on black, and all of the picture is the hole.
    """
    level, scene = draw.level, target.scene
    if draw.pair.kind == "multiview":
        level, scene = MASK_LEVELS[-1], _put_target_on_black(target)
        mask = hole = np.ones(scene.shape[:2], dtype=bool)
    else:
        mask = _mirror(draw, target.mask)
        hole = compute_mask_levels(mask)[level]
        hole = add_contact_margin(hole, compute_object_size_px(mask), draw.margin_share)
    hidden = draw.hides or target.plate is None
    background = _apply(draw, scene if target.plate is None else target.plate)
    return CompositingBatch(
        position=torch.tensor([draw.position]),
        kind=torch.tensor([PAIR_KINDS.index(draw.pair.kind)]),
        **_build_pictures(draw, [reference, *others]),
        is_single=torch.tensor([draw.pair.kind == "single"]),
        scene=_to_tensor(_apply(draw, scene)),
        hole=torch.from_numpy(np.ascontiguousarray(hole))[None, None],
        level=torch.tensor([MASK_LEVELS.index(level)]),
        mask=torch.from_numpy(np.ascontiguousarray(mask))[None, None],
        background=_to_tensor(fill_hole(background, hole) if hidden else background),
        hidden=torch.tensor([hidden]),
    )


def collate(samples: Sequence[Batch]) -> Batch:
    """Join batches along their first axis."""
    names = [field.name for field in fields(samples[0])]
    return type(samples[0])(**{name: torch.cat([getattr(sample, name) for sample in samples]) for name in names})


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return type(batch)(**{field.name: getattr(batch, field.name).to(device) for field in fields(batch)})


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch's samples `rows`, in that order."""
    return type(batch)(**{field.name: getattr(batch, field.name)[list(rows)] for field in fields(batch)})


def swap_objects(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with the pictures of another sample's object for each."""
    names = ("reference", "opacity", "more", "more_opacity", "present")
    return replace(batch, **{name: getattr(batch, name)[list(rows)] for name in names})


def halve_batch(batch: Batch) -> Batch:
    """Targets of half the side: a pixel is the mean of four, and a hole wherever one was. References stay."""
    if isinstance(batch, IdentityBatch):
        return replace(batch, target=F.avg_pool2d(batch.target, 2))
    hole, mask = F.max_pool2d(batch.hole.float(), 2) > 0, F.avg_pool2d(batch.mask.float(), 2) >= 0.5
    scene, background = F.avg_pool2d(batch.scene, 2), F.avg_pool2d(batch.background, 2)
    return replace(batch, scene=scene, background=background, hole=hole, mask=mask)


def _put_target_on_black(target: View) -> np.ndarray:
    """RGB uint8 of the scene's size: the view's object alone, as large as the canvas allows."""
    height, width = target.scene.shape[:2]
    return resize_image(put_on_black(target.object_rgba), (height, width))


def _apply(draw: Draw, image: np.ndarray) -> np.ndarray:
    """RGB [h, w, 3], mirrored and with its channels permuted as drawn."""
    return _mirror(draw, image)[..., list(draw.channels)]


def _mirror(draw: Draw, image: np.ndarray) -> np.ndarray:
    return image[:, ::-1] if draw.mirrored else image


def _build_pictures(draw: Draw, views: Sequence[View]) -> dict[str, Tensor]:
    """What the encoder sees of the object: the reference, and behind it as many places as the draw's rules have."""
    crops = [crop for view in views for crop in list_object_crops(view.object_rgba, detail=draw.detail)]
    count = draw.max_references * (2 if draw.detail else 1)  # as `Preset.num_pictures`
    present = [place < len(crops) for place in range(1, count)]
    crops += [np.zeros_like(crops[0])] * (count - len(crops))
    pictures = torch.cat([_to_tensor(_apply(draw, put_on_black(crop))) for crop in crops])
    opacity = torch.cat([_opacity_tensor(draw, crop) for crop in crops])
    return {
        "reference": pictures[:1],
        "opacity": opacity[:1],
        "more": pictures[None, 1:],
        "more_opacity": opacity[None, 1:],
        "present": torch.tensor([present], dtype=torch.bool),
    }


def _opacity_tensor(draw: Draw, rgba: np.ndarray) -> Float[Tensor, "1 1 r r"]:
    opacity = _mirror(draw, rgba[..., 3]).astype(np.float32) / 255.0
    return torch.from_numpy(opacity)[None, None]


def _to_tensor(image: np.ndarray) -> Float[Tensor, "1 3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(to_model_range(image)))[None]
