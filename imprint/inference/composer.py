"""The compositor at work: choose the view, place its pixels, sample, paste back (paper: background blending)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imprint.appearance import Fields, Rendering, build_grid, compute_behind, render, restrain_light
from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.pixels import from_model_range, put_on_black, to_model_range
from imprint.core.prepare import SceneCrop, check_outside, crop_object, crop_scene, list_object_crops, paste_scene
from imprint.diffusion import build_generator, sample_composite
from imprint.inference.inputs import DEFAULT_LEVEL, Mode, Request, check_hole, check_object
from imprint.inference.native import (
    compute_cut_shadow,
    hide_hole,
    place_outline,
    premultiply,
    render_native,
    render_small,
)
from imprint.inference.refinement import add_change
from imprint.models import ImprintModel, Sampling

LIGHT_SHARE = 0.25  # of the mean gain: chosen with photographs and held-out renders at hand (docs/log.md)


@dataclass(frozen=True, kw_only=True)
class Composite:
    """picture: RGB uint8 like the background, equal to it outside the hole (but for a shadow that may leave it).

    Of a model with an appearance flow: opacity, float32 [h, w], 0-1, of the object before it is cut at the hole; view:
    which of the views that were given was taken; expected_error: the loss that the flow expects of itself, by which it
    was chosen; cut_shadow: the share of its shadow that lies outside the hole. Without one there is no opacity and no
    error, and nothing is known of the shadow.
    """

    picture: np.ndarray
    opacity: np.ndarray | None = None
    view: int = 0
    expected_error: float | None = None
    cut_shadow: float = 0.0


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
        mode: Mode | None = None,
        **sampling: float | None,
    ) -> np.ndarray:
        """RGB uint8 like `background`, equal to it outside `hole`. See `Request` for the arguments; `InputError` if one
        is not usable. sampling: the fields of `Sampling`; the preset's own where they are None."""
        request = Request(object_rgba=object_rgba, background=background, hole=hole, level=level, seed=seed, mode=mode)
        return self.composite_batch([request], **sampling)[0].picture

    @torch.inference_mode()
    def composite_batch(self, requests: Sequence[Request], **sampling: float | None) -> list[Composite]:
        """One composite per request, sampled together. A request's noise depends on its own seed alone.

        sampling: as in `composite`.
        """
        chosen = choose_sampling(self.model.preset.sampling, sampling, has_flow=self.model.appearance_flow is not None)
        modes: list[Mode] = [choose_mode(request.mode, chosen) for request in requests]
        for request in requests:
            self._check_views(request)
            check_hole(request.hole, request.background.shape[:2])
        scenes = [_crop(request, self.model.preset.size_px) for request in requests]
        if chosen.strength == 1.0:
            generated = from_model_range(self._sample(requests, scenes, chosen).float().cpu().numpy())
            return [Composite(picture=_paste(*item)) for item in zip(requests, scenes, generated, strict=True)]
        placed = [self._choose_view(*item) for item in zip(requests, scenes, modes, strict=True)]
        requests = [self._keep_view(request, view) for request, (view, _) in zip(requests, placed, strict=True)]
        fields = [found for _, found in placed]
        changes = self._refine(requests, scenes, modes, fields, chosen)
        rows = zip(requests, scenes, modes, fields, changes, strict=True)
        made = [self._render(*row[:2], mode=row[2], fields=row[3], change=row[4]) for row in rows]
        return [replace(one, view=view) for one, (view, _) in zip(made, placed, strict=True)]

    def _choose_view(self, request: Request, scene: SceneCrop, mode: Mode) -> tuple[int, Fields]:
        """The view that the flow expects the least error of, and its fields; the first, where the model was trained to
        join the tokens of several."""
        views = [request.object_rgba, *request.more_objects]
        fields = self._compute_fields(
            views[:1] if self.model.preset.max_references > 1 else views, request, scene, mode
        )
        best = int(torch.argmin(fields.log_error))
        return best, fields.select(best)

    def _keep_view(self, request: Request, view: int) -> Request:
        """The request with the chosen view alone; with all of them where their tokens are joined."""
        if self.model.preset.max_references > 1:
            return request
        return replace(request, object_rgba=[request.object_rgba, *request.more_objects][view], more_objects=())

    def _compute_fields(self, views: Sequence[np.ndarray], request: Request, scene: SceneCrop, mode: Mode) -> Fields:
        """Of each of the views (RGBA uint8) of the object, on the CPU."""
        assert self.model.appearance_flow is not None
        device, reference_px = self.model.device, self.model.preset.reference_px
        reference = torch.cat([premultiply(crop_object(v[..., :3], v[..., 3], reference_px)) for v in views]).to(device)
        count = len(views)
        level = _encode_levels([request.level], device)
        fields = self.model.appearance_flow(
            _to_unit(scene.image).to(device).expand(count, -1, -1, -1),
            torch.from_numpy(scene.hole)[None, None].to(device).expand(count, -1, -1, -1),
            hidden=torch.full((count,), mode == "replace", device=device),
            reference=reference,
            tokens=self.model.encode_object(reference[:, :3] * 2.0 - 1.0),
            counts=None,
            level=None if level is None else level.expand(count),
        )
        fields = Fields(**{name: value.float().cpu() for name, value in vars(fields).items()})
        grid = build_grid(*scene.hole.shape)
        return restrain_light(fields, render(fields, reference.cpu(), grid).opacity, LIGHT_SHARE)

    def _refine(
        self,
        requests: Sequence[Request],
        scenes: Sequence[SceneCrop],
        modes: Sequence[Mode],
        fields: Sequence[Fields],
        sampling: Sampling,
    ) -> Sequence[np.ndarray | None]:
        """What walking the last part of the path changes of the flow's pictures, at the model's size: float32
        [size_px, size_px, 3] in grey levels; None for each where there is nothing to walk."""
        if int(sampling.steps * sampling.strength) == 0:
            return [None] * len(requests)
        started = [self._paint_small(*item) for item in zip(requests, scenes, modes, fields, strict=True)]
        start = torch.cat(started) * 2.0 - 1.0
        sampled = self._sample(requests, scenes, sampling, start=start.to(self.model.device)).float().cpu()
        return list(((sampled - start) * 127.5).permute(0, 2, 3, 1).numpy())

    def _render_small(self, request: Request, fields: Fields) -> Rendering:
        preset = self.model.preset
        return render_small(fields, request.object_rgba, reference_px=preset.reference_px, size_px=preset.size_px)

    def _paint_small(self, request: Request, scene: SceneCrop, mode: Mode, fields: Fields) -> Tensor:
        """[1, 3, size_px, size_px], 0-1: the flow's picture at the model's size."""
        hole, picture = torch.from_numpy(scene.hole)[None, None], _to_unit(scene.image)
        behind = compute_behind(fields, picture, hole & (mode == "replace"), build_grid(*scene.hole.shape))
        painted = self._render_small(request, fields).put_on(behind)
        return torch.where(hole, painted, picture).clamp(0.0, 1.0)

    def _render(
        self, request: Request, scene: SceneCrop, *, mode: Mode, fields: Fields, change: np.ndarray | None
    ) -> Composite:
        """The flow's picture at the background's own size, with the smooth part of what sampling changed."""
        picture = render_native(
            fields,
            request.object_rgba,
            request.background,
            request.hole,
            box=scene.box,
            replaces=mode == "replace",
            shadow_reach=request.shadow_reach,
        )
        if change is not None:
            picture = add_change(picture, change, hole=request.hole, box=scene.box)
        result = np.rint(picture.clip(0.0, 255.0)).astype(np.uint8)
        if request.shadow_reach <= 0:
            check_outside(result, request.background, request.hole)
        small = self._render_small(request, fields)
        return Composite(
            picture=result,
            opacity=place_outline(small.opacity, request.hole.shape, scene.box),
            expected_error=float(fields.log_error.exp()),
            cut_shadow=compute_cut_shadow(small, scene.hole),
        )

    def _sample(
        self,
        requests: Sequence[Request],
        scenes: Sequence[SceneCrop],
        sampling: Sampling,
        start: Tensor | None = None,
    ) -> Tensor:
        """[b, 3, size_px, size_px] generated scenes in [-1, 1]; from noise, or from the pictures `start`."""
        device = self.model.device
        holes = np.stack([scene.hole for scene in scenes])[:, None]
        tokens, counts = self._encode_objects(requests)
        return sample_composite(
            self.model,
            torch.from_numpy(to_model_range(np.stack([scene.image for scene in scenes]))).to(device),
            torch.from_numpy(holes).to(device),
            tokens,
            counts=counts,
            level=_encode_levels([request.level for request in requests], device),
            **asdict(sampling),
            generator=[build_generator(request.seed) for request in requests],
            start=start,
        )

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
        """What the encoder sees of a request's object, on black; of several views as many as it was trained with."""
        preset = self.model.preset
        views = (request.object_rgba, *request.more_objects)[: preset.max_references]
        canvases = [crop_object(view[..., :3], view[..., 3], preset.canvas_px) for view in views]
        crops = [crop for canvas in canvases for crop in list_object_crops(canvas, detail=preset.detail_crop)]
        return [put_on_black(crop) for crop in crops]

    def _check_views(self, request: Request) -> None:
        """`InputError` for an empty view, or for more of them than the model was trained with; a flow chooses among any
        number, unless their tokens are joined."""
        limit, given = self.model.preset.max_references, 1 + len(request.more_objects)
        chooses = self.model.appearance_flow is not None and limit == 1
        if given > limit and not chooses:
            raise InputError(
                f"{given} views of the object are given, but this model takes {limit}; give fewer, or train one with "
                f"pretrain_encoder.options.max_references: {given}"
            )
        for view in (request.object_rgba, *request.more_objects):
            check_object(view)


def choose_sampling(own: Sampling, given: dict[str, float | None], *, has_flow: bool) -> Sampling:
    """The model's own, with what is given in its place. `InputError` for what is out of range or has no flow."""
    sampling = replace(own, **{name: value for name, value in given.items() if value is not None})
    if min(sampling.steps, sampling.guidance, sampling.draws) < 1:
        raise InputError("steps, guidance and draws must be at least 1")
    if not 0.0 <= sampling.strength <= 1.0:
        raise InputError(f"strength {sampling.strength:g} is not between 0 and 1")
    if sampling.strength < 1.0 and not has_flow:
        raise InputError(
            f"strength {sampling.strength:g} needs an appearance flow, which this model has not; leave it out, or "
            "train one with pretrain_encoder.options.appearance_flow: true"
        )
    return sampling


def choose_mode(asked: Mode | None, sampling: Sampling) -> Mode:
    """`InputError` for `insert` from noise alone: what lies in the hole would not be kept."""
    if asked == "insert" and sampling.strength == 1.0:
        raise InputError(
            "mode insert needs an appearance flow and a strength below 1: from noise alone the hole is made "
            "anew; use mode replace, or another model or strength"
        )
    return asked or ("replace" if sampling.strength == 1.0 else "insert")


def _crop(request: Request, size_px: int) -> SceneCrop:
    scene = crop_scene(request.background, request.hole, size_px)
    if not scene.hole.any():
        raise InputError("the mask's white part is too thin to be seen at the model's size; paint a larger one")
    return scene


def _paste(request: Request, scene: SceneCrop, generated: np.ndarray) -> np.ndarray:
    hidden = hide_hole(request.background, request.hole, scene.box)  # the feather blends with what may be seen
    result = paste_scene(hidden, request.hole, generated, scene.box)
    check_outside(result, request.background, request.hole)
    return result


def _to_unit(image: np.ndarray) -> Tensor:
    """RGB uint8 [h, w, 3] => [1, 3, h, w], 0-1."""
    return torch.from_numpy(image.astype(np.float32) / 255.0).permute(2, 0, 1)[None]


def _encode_levels(levels: Sequence[MaskLevel | None], device: torch.device) -> torch.Tensor | None:
    """int64 [b] of level numbers; None where no request gives one (all of a batch do, or none)."""
    given = [level for level in levels if level is not None]
    if not given:
        return None
    if len(given) < len(levels):
        raise ValueError("a batch mixes requests with and without a mask level")
    return torch.tensor([MASK_LEVELS.index(level) for level in given], device=device)
