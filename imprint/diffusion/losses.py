"""The denoising losses of the two stages, per sample. Training averages them; evaluation compares them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from imprint.diffusion.sampling import Denoiser
from imprint.diffusion.schedule import add_noise, compute_alphas_cumprod, compute_snr, x0_eps_to_v


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Loss weights per timestep: clamp(SNR, min_snr, max_snr) on x0 (after min-SNR, Hang et al. 2023)."""

    min_snr: float
    max_snr: float
    outside: float = 0.0  # weight of the error outside the hole; inside it is 1

    def compute(self, snr: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return snr.clamp(self.min_snr, self.max_snr)


def compute_identity_losses(
    model: Denoiser,
    tokens: Float[Tensor, "b n d"],
    target: Float[Tensor, "b 3 s s"],
    *,
    timestep: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    weighting: Weighting,
) -> Float[Tensor, " b"]:
    """Paper, stage 1: the U-Net sees noise alone and denoises the other view of the object, on black."""
    alphas = compute_alphas_cumprod().to(model.device)
    x_0 = model.codec.encode(target)
    x_t = add_noise(x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    goal = _compute_goal(model, x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    error = (model.denoise(x_t, timestep, tokens, None) - goal).square()
    return weighting.compute(compute_snr(alphas, timestep)) * error.mean(dim=(1, 2, 3))


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
) -> Float[Tensor, " b"]:
    """Paper, stage 2: the U-Net sees the clean background with noise in the hole alone; the loss is the hole's.

    scene: the target picture, with the object in it; mean over the hole, so that small objects count as much.
    """
    alphas = compute_alphas_cumprod().to(model.device)
    clean, keep = model.codec.encode_background(scene, hole)
    x_0 = model.codec.encode(scene)
    z_t = add_noise(x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    x_t = blend_input(clean, z_t, keep=keep)
    goal = _compute_goal(model, x_0, noise, alphas_cumprod=alphas, timestep=timestep)
    error = (model.denoise(x_t, timestep, tokens, level) - goal).square()
    share = (1.0 - keep) + weighting.outside * keep
    mean_error = (share * error).sum(dim=(1, 2, 3)) / share.sum(dim=(1, 2, 3)).clamp_min(1.0)
    return weighting.compute(compute_snr(alphas, timestep)) * mean_error


def blend_input(
    clean: Float[Tensor, "b c h w"], z_t: Float[Tensor, "b c h w"], *, keep: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """M * clean background latent + (1 - M) * z_t: no noise was added outside the hole."""
    return keep * clean + (1.0 - keep) * z_t


def _compute_goal(model: Denoiser, x_0: Tensor, noise: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    """What the model has to predict."""
    if model.preset.prediction_type == "sample":
        return x_0
    if model.preset.prediction_type == "epsilon":
        return noise
    return x0_eps_to_v(x_0, noise, alphas_cumprod=alphas_cumprod, timestep=timestep)
