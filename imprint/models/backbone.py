"""The image encoder behind one interface: DINOv2 by default, CLIP's vision tower for the paper's comparison."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from imprint.models.configs import Config

Backbone = Dinov2Model | CLIPVisionModel
# model_type => class, and the mean and spread of the pixels that it was trained on, for images in [0, 1]
BACKBONES = {"dinov2": (Dinov2Config, Dinov2Model), "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel)}
STATISTICS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def build_backbone(config: Config) -> Backbone:
    """Random weights."""
    config_class, model_class = BACKBONES[config["model_type"]]
    return model_class(config_class(**config))  # pyright: ignore[reportArgumentType]


def compute_features(backbone: Backbone, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n f"]:
    """Object on black in [-1, 1] => the backbone's last hidden state: the class token, then one per patch."""
    mean, std = (reference.new_tensor(values).view(1, 3, 1, 1) for values in STATISTICS[backbone.config.model_type])
    pixels = (reference * 0.5 + 0.5 - mean) / std
    if isinstance(backbone, CLIPVisionModel):  # DINOv2 fits its positions to the picture by itself
        fits = reference.shape[-1] == backbone.config.image_size
        return backbone(pixel_values=pixels, interpolate_pos_encoding=not fits).last_hidden_state
    return backbone(pixel_values=pixels).last_hidden_state
