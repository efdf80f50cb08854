"""The noise schedule, the two losses and the two samplers."""

from imprint.diffusion.losses import Weighting, compute_compositing_losses, compute_identity_losses
from imprint.diffusion.noise import build_generator, build_generators, sample_noise
from imprint.diffusion.sampling import sample_composite, sample_object
from imprint.diffusion.schedule import NUM_TIMESTEPS, SCHEDULERS, add_noise, build_scheduler

__all__ = [
    "NUM_TIMESTEPS",
    "SCHEDULERS",
    "Weighting",
    "add_noise",
    "build_generator",
    "build_generators",
    "build_scheduler",
    "compute_compositing_losses",
    "compute_identity_losses",
    "sample_composite",
    "sample_noise",
    "sample_object",
]
