"""How the background is held while the hole is denoised: what training shows and asks for, and what sampling does.

- `clean` (the paper): the clean background stands outside the hole at every step; no noise was ever added there, so
  nothing is asked for there.
- `noised` (blended diffusion, Avrahami et al. 2022; RePaint, Lugmayr et al. 2022): the background with the step's own
  noise stands there.
- `none`: sampling starts from the clean background with noise in the hole, and never puts it back. The background is
  then carried by the solver, whose path from there is known: it is that of a "noise" which is the background itself.
  Training shows that path, and asks for the background too.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor


def blend(
    outside: Float[Tensor, "b c h w"], inside: Float[Tensor, "b c h w"], *, keep: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """M * outside + (1 - M) * inside."""
    return keep * outside + (1.0 - keep) * inside


def blend_ends(
    blending: str,
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    *,
    clean: Float[Tensor, "b c h w"],
    keep: Float[Tensor, "b c h w"],
    alphas_cumprod: Float[Tensor, " t"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """The two ends of the path that training shows, x_0 and the noise, as sampling with this blending has them."""
    if blending == "clean":
        return x_0, noise
    x_0 = blend(clean, x_0, keep=keep)
    if blending == "none":
        a, s = alphas_cumprod[-1].sqrt(), (1.0 - alphas_cumprod[-1]).sqrt()
        noise = blend(clean * (1.0 - a) / s, noise, keep=keep)  # x_t is the clean background at the last timestep
    return x_0, noise


def start_path(
    blending: str, noise: Float[Tensor, "b c h w"], *, clean: Tensor, keep: Tensor, solver: Any
) -> Float[Tensor, "b c h w"]:
    """Where sampling starts, on the solver's scale."""
    start = blend(clean, noise, keep=keep) if blending == "none" else noise
    return start * solver.init_noise_sigma


def join_path(
    x_0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], *, solver: Any, step: int
) -> Float[Tensor, "b c h w"]:
    """A clean picture as the path has it before its step number `step`, on the solver's scale; after the last one it is
    the picture itself."""
    if step == len(solver.timesteps):
        return x_0
    if hasattr(solver, "set_begin_index"):  # those that keep count; DDIM does not
        solver.set_begin_index(step)
    return solver.add_noise(x_0, noise, solver.timesteps[step : step + 1].expand(len(x_0)))


def hold_background(
    blending: str, z_t: Float[Tensor, "b c h w"], *, clean: Tensor, keep: Tensor, noise: Tensor, solver: Any, step: int
) -> Float[Tensor, "b c h w"]:
    """z_t on the solver's scale, before its step number `step`, with the background as the blending has it then."""
    if blending != "noised":
        return z_t
    timestep = solver.timesteps[step : step + 1].expand(len(z_t))
    return blend(solver.add_noise(clean, noise, timestep), z_t, keep=keep)
