"""The noise schedule, and the conversions between what a model may predict: x0, eps and v.

x_t = a * x_0 + s * eps with a = sqrt(alpha_bar_t) and s = sqrt(1 - alpha_bar_t); v = a * eps - s * x_0
(Salimans & Ho 2022). Our own schedule has a terminal SNR of zero (Lin et al. 2024): at the last timestep x_t is noise
alone. A pretrained model keeps the schedule that it was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

from imprint.core.errors import InputError

SchedulerName = Literal["ddim", "dpm", "euler"]
SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)  # each is tested to leave the background untouched
Scheduler = DDIMScheduler | DPMSolverMultistepScheduler | EulerDiscreteScheduler

NUM_TIMESTEPS = 1000


@runtime_checkable
class Schedule(Protocol):
    """What of a model's preset fixes its noise schedule; `imprint.models.Preset` is one."""

    @property
    def prediction_type(self) -> str: ...
    @property
    def zero_terminal_snr(self) -> bool: ...
    @property
    def beta_schedule(self) -> str: ...
    @property
    def beta_start(self) -> float: ...
    @property
    def beta_end(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class OurSchedule:
    """The schedule of the from-scratch presets."""

    prediction_type: str = "sample"
    zero_terminal_snr: bool = True
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012


OURS = OurSchedule()


def build_scheduler(name: str = "ddim", schedule: Schedule = OURS) -> Scheduler:
    """One of the allowed diffusers schedulers on a model's schedule; `InputError` for any other name."""
    settings = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": schedule.prediction_type,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": "trailing",
    }
    if name == "ddim":
        return DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)
    if name == "dpm":
        return DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++", solver_order=2)
    if name == "euler":
        return EulerDiscreteScheduler(**settings)
    raise InputError(f"scheduler {name!r} is not known to leave the background untouched; use {', '.join(SCHEDULERS)}")


def compute_alphas_cumprod(schedule: Schedule = OURS) -> Float[Tensor, " t"]:
    """alpha_bar per timestep, from about 1 down to 0 (ours) or nearly so."""
    return build_scheduler("ddim", schedule).alphas_cumprod


def compute_snr(alphas_cumprod: Float[Tensor, " t"], timestep: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar)."""
    alpha_bar = alphas_cumprod[timestep]
    return alpha_bar / (1.0 - alpha_bar)


def add_noise(
    x_0: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    *,
    alphas_cumprod: Float[Tensor, " t"],
    timestep: Int[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """x_t of the forward process."""
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return a * x_0 + s * noise


def x0_to_eps(x_0: Tensor, x_t: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    """Not defined where there is no noise (s = 0)."""
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return (x_t - a * x_0) / s


def eps_to_x0(eps: Tensor, x_t: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    """Not defined at zero SNR (a = 0)."""
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return (x_t - s * eps) / a


def v_to_x0(v: Tensor, x_t: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return a * x_t - s * v


def predict_x0(
    prediction: Tensor, x_t: Tensor, prediction_type: str, *, alphas_cumprod: Tensor, timestep: Tensor
) -> Tensor:
    """x_0 as a model's prediction has it."""
    if prediction_type == "sample":
        return prediction
    convert = eps_to_x0 if prediction_type == "epsilon" else v_to_x0
    return convert(prediction, x_t, alphas_cumprod=alphas_cumprod, timestep=timestep)


def v_to_eps(v: Tensor, x_t: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return a * v + s * x_t


def x0_eps_to_v(x_0: Tensor, eps: Tensor, *, alphas_cumprod: Tensor, timestep: Tensor) -> Tensor:
    a, s = _signal_and_noise(alphas_cumprod, timestep)
    return a * eps - s * x_0


def _signal_and_noise(alphas_cumprod: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
