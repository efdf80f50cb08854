"""The denoising losses of the two stages, per sample. Training averages them; evaluation compares them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.diffusion.blending import blend, blend_ends
from imprint.diffusion.sampling import Denoiser
from imprint.diffusion.schedule import add_noise, compute_alphas_cumprod, compute_snr, x0_eps_to_v


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Loss weights per timestep: clamp(SNR, min_snr, max_snr) on x0 (after min-SNR, Hang et al. 2023)."""

    min_snr: float
    max_snr: float
    outside: float = 0.0  # weight of the error outside the hole; inside it is 1

    def compute(self, snr: Float[Tensor, " b"], prediction_type: str = "sample") -> Float[Tensor, " b"]:
        """The weight of a squared error in what the model predicts, that the same error in x0 would have.

        An error e in x0 is one of sqrt(SNR) * e in eps, and of sqrt(SNR + 1) * e in v.
        """
        weight = snr.clamp(self.min_snr, self.max_snr)
        return weight / {"sample": 1.0, "epsilon": snr, "v_prediction": snr + 1.0}[prediction_type]


def compute_identity_losses(
    model: Denoiser,
    tokens: Float[Tensor, "b n d"],
    target: Float[Tensor, "b 3 s s"],
    *,
    timestep: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    weighting: Weighting,
    counts: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """Paper, stage 1: the U-Net sees noise alone and denoises the other view of the object, on black."""
    alphas = compute_alphas_cumprod(model.preset).to(model.device)
    x_0 = model.codec.encode(target)
    x_t = add_noise(x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    goal = _compute_goal(model, x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    error = (model.denoise(x_t, timestep, tokens, None, counts) - goal).square()
    weight = weighting.compute(compute_snr(alphas, timestep), model.preset.prediction_type)
    return weight * error.mean(dim=(1, 2, 3))


def compute_compositing_losses(
    model: Denoiser,
    tokens: Float[Tensor, "b n d"],
    scene: Float[Tensor, "b 3 s s"],
    *,
    hole: Bool[Tensor, "b 1 s s"],
    level: Int[Tensor, " b"] | None,
    timestep: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    weighting: Weighting,
    counts: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """Paper, stage 2: the U-Net sees the clean background with noise in the hole alone; the loss is the hole's.

    scene: the target picture, with the object in it; mean over the hole, so that small objects count as much. The
    preset's other two blendings have an input and a target of their own: see `imprint.diffusion.blending`.
    """
    alphas = compute_alphas_cumprod(model.preset).to(model.device)
    clean, keep = model.codec.encode_background(scene, hole)
    x_0 = model.codec.encode(scene)
    blending = model.preset.blending
    x_0, noise = blend_ends(blending, x_0, noise, clean=clean, keep=keep, alphas_cumprod=alphas)
    z_t = add_noise(x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    x_t = blend(clean, z_t, keep=keep) if blending == "clean" else z_t
    goal = _compute_goal(model, x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    error = (model.denoise(x_t, timestep, tokens, level, counts) - goal).square()
    share = (1.0 - keep) + (1.0 if blending == "none" else weighting.outside) * keep
    mean_error = (share * error).sum(dim=(1, 2, 3)) / share.sum(dim=(1, 2, 3)).clamp_min(1.0)
    return weighting.compute(compute_snr(alphas, timestep), model.preset.prediction_type) * mean_error


def _compute_goal(model: Denoiser, x_0: Tensor, noise: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    """What the model has to predict."""
    if model.preset.prediction_type == "sample":
        return x_0
    if model.preset.prediction_type == "epsilon":
        return noise
    return x0_eps_to_v(x_0, noise, alphas_cumprod=alphas_cumprod, timestep=timestep)
