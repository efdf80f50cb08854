"""Sampling: an object on black (stage 1), and an object in a scene (stage 2) with the background held fast.

A solver follows one path from noise to picture. With `draws` above 1 there is no path: every step noises the present
picture anew, `draws` times over, and takes the mean of what the model makes of them. What a model that was trained
briefly reads into the noise differs from draw to draw and goes away; what it takes from the object stays. So does the
variety: of a model that was trained for long it makes a blur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.core.errors import InputError
from imprint.diffusion.blending import blend, hold_background, join_path, start_path
from imprint.diffusion.noise import sample_noise
from imprint.diffusion.schedule import Schedule, SchedulerName, add_noise, build_scheduler, predict_x0

Generators = Sequence[torch.Generator]  # one per sample: a result does not depend on the rest of its batch


@runtime_checkable
class Codec(Protocol):
    def encode(self, image: Tensor, /) -> Tensor: ...
    def decode(self, latents: Tensor, /) -> Tensor: ...
    def encode_background(self, image: Tensor, hole: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def clamp(self, latents: Tensor, /) -> Tensor: ...


@runtime_checkable
class Shape(Schedule, Protocol):
    @property
    def latent_channels(self) -> int: ...
    @property
    def latent_px(self) -> int: ...
    @property
    def blending(self) -> str: ...


@runtime_checkable
class Denoiser(Protocol):
    """What sampling and the losses need of a model; `imprint.models.ImprintModel` is one."""

    @property
    def codec(self) -> Codec: ...
    @property
    def preset(self) -> Shape: ...
    @property
    def device(self) -> torch.device: ...
    def null_tokens(self, batch_size: int, length: int | None, /) -> Tensor: ...
    def denoise(
        self, x_t: Tensor, timestep: Tensor, tokens: Tensor, level: Tensor | None, counts: Tensor | None, /
    ) -> Tensor: ...


@torch.no_grad()
def sample_object(
    model: Denoiser,
    tokens: Float[Tensor, "b n d"],
    *,
    steps: int,
    guidance: float,
    generator: Generators,
    draws: int = 1,
    scheduler: SchedulerName = "ddim",
    counts: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b 3 s s"]:
    """The object of `tokens` on black, from pure noise, in [-1, 1]; `counts`: which tokens are looked at, None: all.

    draws: of noise per step; above 1 their mean takes the solver's place, and `scheduler` is not used.
    """
    condition = {"tokens": tokens, "level": None, "counts": counts, "guidance": guidance}
    if draws > 1:
        z_0 = _average_draws(model, generator, steps=steps, draws=draws, condition=condition)
        return model.codec.decode(z_0).clamp(-1.0, 1.0)
    solver = _start(model, scheduler, steps)
    z_t = _sample_noise(model, generator) * solver.init_noise_sigma
    for timestep in solver.timesteps:
        x_t = solver.scale_model_input(z_t, timestep)
        prediction = compute_guided(model, x_t, timestep.long(), **condition)
        z_t = solver.step(prediction, timestep, z_t).prev_sample
    return model.codec.decode(z_t).clamp(-1.0, 1.0)


@torch.no_grad()
def sample_composite(
    model: Denoiser,
    scene: Float[Tensor, "b 3 s s"],
    hole: Bool[Tensor, "b 1 s s"],
    tokens: Float[Tensor, "b n d"],
    *,
    level: Int[Tensor, " b"] | None,
    steps: int,
    guidance: float,
    generator: Generators,
    draws: int = 1,
    scheduler: SchedulerName = "ddim",
    on_step: Callable[[Tensor], None] | None = None,
    counts: Bool[Tensor, "b n"] | None = None,
    start: Float[Tensor, "b 3 s s"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "b 3 s s"]:
    """The object of `tokens` in the hole of `scene`, in [-1, 1]; what lies in the scene's hole is never seen.

    Paper, background blending: the clean background latent stands outside the hole at every step, as in training; the
    preset may have another blending (`imprint.diffusion.blending`). `level` holds indices into MASK_LEVELS; `on_step`
    sees the latents after every step; `counts`: which tokens are looked at, None: all.

    draws: of noise per step; above 1 their mean takes the solver's place, and `scheduler` is not used.

    start, strength: below 1 the path begins at the noised latents of the picture `start`, as in diffusers: of the
    `steps` the last share `strength` is walked (beyond the paper).
    """
    clean, keep = model.codec.encode_background(scene, hole)
    blending = model.preset.blending
    condition = {"tokens": tokens, "level": level, "counts": counts, "guidance": guidance}
    skipped = 0 if start is None else steps - min(int(steps * strength), steps)
    x_0 = None if start is None else model.codec.encode(start)
    if draws > 1:
        plan = {"steps": steps, "draws": draws, "condition": condition, "on_step": on_step}
        z_0 = _average_draws(model, generator, **plan, background=(clean, keep), start=x_0, skipped=skipped)
        return model.codec.decode(z_0).clamp(-1.0, 1.0)
    solver = _start(model, scheduler, steps)
    noise = _sample_noise(model, generator)
    held = {"clean": clean, "keep": keep, "solver": solver}
    z_t = start_path(blending, noise, **held) if x_0 is None else join_path(x_0, noise, solver=solver, step=skipped)
    for step, timestep in list(enumerate(solver.timesteps))[skipped:]:
        z_t = hold_background(blending, z_t, noise=noise, step=step, **held)
        x_t = solver.scale_model_input(z_t, timestep)
        if blending == "clean":
            # after scale_model_input: the background is on the model's scale, not on the solver's
            x_t = blend(clean, x_t, keep=keep)
        prediction = compute_guided(model, x_t, timestep.long(), **condition)
        z_t = solver.step(prediction, timestep, z_t).prev_sample
        if blending == "clean":
            z_t = blend(clean, z_t, keep=keep)
        if on_step is not None:
            on_step(z_t)
    if blending == "noised":
        z_t = blend(clean, z_t, keep=keep)
    return model.codec.decode(z_t).clamp(-1.0, 1.0)


def compute_guided(
    model: Denoiser,
    x_t: Float[Tensor, "b c h w"],
    timestep: Int[Tensor, ""],
    *,
    tokens: Float[Tensor, "b n d"],
    level: Int[Tensor, " b"] | None,
    counts: Bool[Tensor, "b n"] | None,
    guidance: float,
) -> Float[Tensor, "b c h w"]:
    """Classifier-free guidance: null + guidance * (object - null); 1 asks the model once. x0 stays in its range."""
    batch_size = x_t.shape[0]
    if guidance == 1.0:
        prediction = model.denoise(x_t, timestep.expand(batch_size), tokens, level, counts)
    else:
        both_tokens = torch.cat([tokens, model.null_tokens(batch_size, tokens.shape[1])])
        conditions = [None if value is None else torch.cat([value, value]) for value in (level, counts)]
        both = model.denoise(torch.cat([x_t, x_t]), timestep.expand(2 * batch_size), both_tokens, *conditions)
        with_object, without = both.chunk(2)
        prediction = without + guidance * (with_object - without)
    return model.codec.clamp(prediction) if model.preset.prediction_type == "sample" else prediction


def _average_draws(
    model: Denoiser,
    generator: Generators,
    *,
    steps: int,
    draws: int,
    condition: dict[str, Any],
    background: tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]] | None = None,
    on_step: Callable[[Tensor], None] | None = None,
    start: Float[Tensor, "b c h w"] | None = None,
    skipped: int = 0,
) -> Float[Tensor, "b c h w"]:
    """Clean latents; of a `background` (clean latents, keep mask M) what M keeps stays. start, skipped: the picture's
    latents that the step after so many begins with, in the place of nothing.

    `InputError` for the blending `none`, whose background moves.
    """
    blending = model.preset.blending
    if blending == "none":
        raise InputError("draws above 1 need the blending clean or noised; this model has none: set draws to 1")
    solver = _start(model, "ddim", steps)
    alphas = solver.alphas_cumprod.to(model.device)
    x_0 = torch.zeros(len(generator), *_get_shape(model), device=model.device) if start is None else start
    for timestep in solver.timesteps.long()[skipped:]:
        x_0 = _put_back(x_0, background)
        schedule = {"alphas_cumprod": alphas, "timestep": timestep.expand(len(x_0))}
        drawn = torch.zeros_like(x_0)
        for _ in range(draws):
            x_t = add_noise(x_0, _sample_noise(model, generator), **schedule)
            if blending == "clean":
                x_t = _put_back(x_t, background)
            prediction = compute_guided(model, x_t, timestep, **condition)
            drawn += predict_x0(prediction, x_t, model.preset.prediction_type, **schedule) / draws
        x_0 = _put_back(drawn, background)
        if on_step is not None:
            on_step(x_0)
    return x_0


def _put_back(latents: Tensor, background: tuple[Tensor, Tensor] | None) -> Tensor:
    return latents if background is None else blend(background[0], latents, keep=background[1])


def _start(model: Denoiser, scheduler: SchedulerName, steps: int) -> Any:  # diffusers types a timestep as int
    solver = build_scheduler(scheduler, model.preset)
    solver.set_timesteps(steps, device=model.device)
    return solver


def _sample_noise(model: Denoiser, generators: Generators) -> Tensor:
    return sample_noise(_get_shape(model), generators, model.device)


def _get_shape(model: Denoiser) -> tuple[int, int, int]:
    return model.preset.latent_channels, model.preset.latent_px, model.preset.latent_px
