"""The compositor at work: crop the scene around the hole, sample, paste back (paper: background blending)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.pixels import from_model_range, put_on_black, to_model_range
from imprint.core.prepare import SceneCrop, crop_object, crop_scene, paste_scene
from imprint.diffusion import build_generator, sample_composite
from imprint.inference.inputs import DEFAULT_LEVEL, Request, check_hole, check_object
from imprint.models import ImprintModel


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
        steps: int,
        guidance: float,
        seed: int = 0,
    ) -> np.ndarray:
        """RGB uint8 like `background`, equal to it outside `hole`. See `Request` for the arguments; `InputError` if one
        is not usable. steps: denoising steps; guidance: 1 is none, larger follows the object more strictly."""
        request = Request(object_rgba=object_rgba, background=background, hole=hole, level=level, seed=seed)
        return self.composite_batch([request], steps=steps, guidance=guidance)[0]

    @torch.inference_mode()
    def composite_batch(self, requests: Sequence[Request], *, steps: int, guidance: float) -> list[np.ndarray]:
        """One picture per request, sampled together. A request's noise depends on its own seed alone."""
        for request in requests:
            check_object(request.object_rgba)
            check_hole(request.hole, request.background.shape[:2])
        scenes = [_crop(request, self.model.preset.size_px) for request in requests]
        generated = self._sample(requests, scenes, steps, guidance)
        return [_paste(*item) for item in zip(requests, scenes, generated, strict=True)]

    def _sample(
        self, requests: Sequence[Request], scenes: Sequence[SceneCrop], steps: int, guidance: float
    ) -> np.ndarray:
        """uint8 [b, size_px, size_px, 3] generated scenes."""
        device = self.model.device
        size_px = self.model.preset.reference_px
        objects = [crop_object(r.object_rgba[..., :3], r.object_rgba[..., 3], size_px) for r in requests]
        references = to_model_range(np.stack([put_on_black(canvas) for canvas in objects]))
        holes = np.stack([scene.hole for scene in scenes])[:, None]
        images = sample_composite(
            self.model,
            torch.from_numpy(to_model_range(np.stack([scene.image for scene in scenes]))).to(device),
            torch.from_numpy(holes).to(device),
            self.model.encode_object(torch.from_numpy(references).to(device)),
            level=_encode_levels([request.level for request in requests], device),
            steps=steps,
            guidance=guidance,
            generator=[build_generator(request.seed) for request in requests],
        )
        return from_model_range(images.float().cpu().numpy())


def _crop(request: Request, size_px: int) -> SceneCrop:
    scene = crop_scene(request.background, request.hole, size_px)
    if not scene.hole.any():
        raise InputError("the mask's white part is too thin to be seen at the model's size; paint a larger one")
    return scene


def _paste(request: Request, scene: SceneCrop, generated: np.ndarray) -> np.ndarray:
    result = paste_scene(request.background, request.hole, generated, scene.box)
    outside = ~request.hole
    assert np.array_equal(result[outside], request.background[outside]), "pixels outside the hole changed"
    return result


def _encode_levels(levels: Sequence[MaskLevel | None], device: torch.device) -> torch.Tensor | None:
    """int64 [b] of level numbers; None where no request gives one (all of a batch do, or none)."""
    given = [level for level in levels if level is not None]
    if not given:
        return None
    assert len(given) == len(levels), "a batch mixes requests with and without a mask level"
    return torch.tensor([MASK_LEVELS.index(level) for level in given], device=device)
