"""DINOv2 backbone, content adapter, U-Net and codec, their presets and their files."""

from imprint.models.checkpoint import compute_weights_digest, load_card, load_encoder, load_model, load_part, save_model
from imprint.models.model import ImprintModel, ObjectEncoder, build_model
from imprint.models.presets import PRESETS, Preset, Sampling

__all__ = [
    "PRESETS",
    "ImprintModel",
    "ObjectEncoder",
    "Preset",
    "Sampling",
    "build_model",
    "compute_weights_digest",
    "load_card",
    "load_encoder",
    "load_model",
    "load_part",
    "save_model",
]
