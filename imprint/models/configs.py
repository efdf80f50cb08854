"""The published architectures that the pretrained presets name, as the libraries' own configuration values.

Stated here so that full-size models can be counted and built without any weights. A model that starts from weights
takes its values from those weights' own `config.json`. Lists, not tuples: these values go through JSON.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]  # arguments of a class of diffusers or transformers

# Stable Diffusion 1.5 (Rombach et al. 2022): 859,520,964 parameters
SD15_UNET: Config = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # diffusers' historical name for the number of heads
    "norm_num_groups": 32,
}

# its autoencoder: 83,653,863 parameters
SD15_VAE: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

# DINOv2 (Oquab et al. 2023): 304,368,640 and 1,136,480,768 parameters
DINOV2_LARGE: Config = {
    "model_type": "dinov2",
    "image_size": 518,
    "patch_size": 14,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
DINOV2_GIANT: Config = {
    "model_type": "dinov2",
    "image_size": 518,
    "patch_size": 14,
    "hidden_size": 1536,
    "num_hidden_layers": 40,
    "num_attention_heads": 24,
    "use_swiglu_ffn": True,
}
