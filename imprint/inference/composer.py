"""The compositor at work: crop the scene around the hole, sample, paste back (paper: background blending)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.pixels import from_model_range, put_on_black, to_model_range
from imprint.core.prepare import SceneCrop, check_outside, crop_object, crop_scene, list_object_crops, paste_scene
from imprint.diffusion import build_generator, sample_composite
from imprint.inference.inputs import DEFAULT_LEVEL, Request, check_hole, check_object
from imprint.models import ImprintModel, Sampling


class Compositor:
    """A model in evaluation mode, with the preparation before it and the paste-back behind it."""

    def __init__(self, model: ImprintModel) -> None:
        self.model = model.eval()

    def composite(
        self,
        object_rgba: np.ndarray,
        background: np.ndarray,
        hole: np.ndarray,
        *,
        level: MaskLevel | None = DEFAULT_LEVEL,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        draws: int | None = None,
    ) -> np.ndarray:
        """RGB uint8 like `background`, equal to it outside `hole`. See `Request` for the arguments; `InputError` if one
        is not usable. `steps`, `guidance`, `draws`: see `Sampling`; the preset's own where they are None."""
        request = Request(object_rgba=object_rgba, background=background, hole=hole, level=level, seed=seed)
        return self.composite_batch([request], steps=steps, guidance=guidance, draws=draws)[0]

    @torch.inference_mode()
    def composite_batch(
        self,
        requests: Sequence[Request],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        draws: int | None = None,
    ) -> list[np.ndarray]:
        """One picture per request, sampled together. A request's noise depends on its own seed alone."""
        given = {"steps": steps, "guidance": guidance, "draws": draws}
        chosen = {name: value for name, value in given.items() if value is not None}
        sampling = replace(self.model.preset.sampling, **chosen)
        if min(asdict(sampling).values()) < 1:
            raise InputError("steps, guidance and draws must be at least 1")
        for request in requests:
            self._check_views(request)
            check_hole(request.hole, request.background.shape[:2])
        scenes = [_crop(request, self.model.preset.size_px) for request in requests]
        generated = self._sample(requests, scenes, sampling)
        return [_paste(*item) for item in zip(requests, scenes, generated, strict=True)]

    def _sample(self, requests: Sequence[Request], scenes: Sequence[SceneCrop], sampling: Sampling) -> np.ndarray:
        """uint8 [b, size_px, size_px, 3] generated scenes."""
        device = self.model.device
        holes = np.stack([scene.hole for scene in scenes])[:, None]
        tokens, counts = self._encode_objects(requests)
        images = sample_composite(
            self.model,
            torch.from_numpy(to_model_range(np.stack([scene.image for scene in scenes]))).to(device),
            torch.from_numpy(holes).to(device),
            tokens,
            counts=counts,
            level=_encode_levels([request.level for request in requests], device),
            **asdict(sampling),
            generator=[build_generator(request.seed) for request in requests],
        )
        return from_model_range(images.float().cpu().numpy())

    def _encode_objects(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor | None]:
        """Tokens of all views of each request's object, and which count where the requests have different numbers."""
        shown = [self._list_pictures(request) for request in requests]
        count = max(map(len, shown))
        present = torch.tensor([[place < len(pictures) for place in range(1, count)] for pictures in shown])
        blank = np.zeros_like(shown[0][0])
        padded = np.stack([[*pictures, *[blank] * (count - len(pictures))] for pictures in shown])
        pictures = torch.from_numpy(to_model_range(padded)).to(self.model.device)
        return self.model.encode_pictures(pictures[:, 0], pictures[:, 1:], present.bool().to(self.model.device))

    def _list_pictures(self, request: Request) -> list[np.ndarray]:
        """What the encoder sees of a request's object, on black."""
        preset = self.model.preset
        views = (request.object_rgba, *request.more_objects)
        canvases = [crop_object(view[..., :3], view[..., 3], preset.canvas_px) for view in views]
        crops = [crop for canvas in canvases for crop in list_object_crops(canvas, detail=preset.detail_crop)]
        return [put_on_black(crop) for crop in crops]

    def _check_views(self, request: Request) -> None:
        """`InputError` for an empty view, or more of them than the model was trained with."""
        limit, given = self.model.preset.max_references, 1 + len(request.more_objects)
        if given > limit:
            raise InputError(
                f"{given} views of the object are given, but this model takes {limit}; give fewer, or train one with "
                f"pretrain_encoder.options.max_references: {given}"
            )
        for view in (request.object_rgba, *request.more_objects):
            check_object(view)


def _crop(request: Request, size_px: int) -> SceneCrop:
    scene = crop_scene(request.background, request.hole, size_px)
    if not scene.hole.any():
        raise InputError("the mask's white part is too thin to be seen at the model's size; paint a larger one")
    return scene


def _paste(request: Request, scene: SceneCrop, generated: np.ndarray) -> np.ndarray:
    result = paste_scene(request.background, request.hole, generated, scene.box)
    check_outside(result, request.background, request.hole)
    return result


def _encode_levels(levels: Sequence[MaskLevel | None], device: torch.device) -> torch.Tensor | None:
    """int64 [b] of level numbers; None where no request gives one (all of a batch do, or none)."""
    given = [level for level in levels if level is not None]
    if not given:
        return None
    if len(given) < len(levels):
        raise ValueError("a batch mixes requests with and without a mask level")
    return torch.tensor([MASK_LEVELS.index(level) for level in given], device=device)
