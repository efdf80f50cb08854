"""Small checkpoints of the published classes, in the layout that a hub repository has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from imprint.core.sources import Kind, Source
from imprint.models import PRESETS, ImprintModel, Preset
from imprint.models.backbone import build_backbone
from imprint.models.pretrained import load_pretrained

TINY = PRESETS["sd15-tiny"]
# Stable Diffusion 2.1: heads of 64 by level, a text encoder of width 1024, linear projections, v prediction
SD21: dict[str, Any] = {"attention_head_dim": [2, 4, 4, 4], "cross_attention_dim": 48, "use_linear_projection": True}


def write_base(folder: Path, *, unet: dict[str, Any] | None = None, prediction_type: str = "") -> Path:
    """U-Net, VAE and scheduler. The VAE's attention has its names of 2022, as the published one has."""
    torch.manual_seed(1)
    UNet2DConditionModel(**TINY.unet | (unet or {})).save_pretrained(folder / "unet")
    AutoencoderKL(**TINY.vae or {}).save_pretrained(folder / "vae")
    _give_old_names(folder / "vae" / "diffusion_pytorch_model.safetensors")
    PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config.pop("prediction_type")  # SD 1.5's says nothing of it
    path.write_text(json.dumps(config | ({"prediction_type": prediction_type} if prediction_type else {})))
    return folder


def write_dinov2(folder: Path) -> Path:
    """A DINOv2 at another picture size than the preset's, as the published one is."""
    torch.manual_seed(2)
    build_backbone(TINY.backbone).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A whole CLIP: the image tower and the text's."""
    torch.manual_seed(3)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    config = CLIPConfig(
        text_config=shape | {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1},
        vision_config=shape | {"image_size": 56, "patch_size": 14},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def _give_old_names(path: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(path).items():
        for new, old in names.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        weights[name] = value
    save_file(weights, path, metadata={"format": "pt"})


def write_published(root: Path) -> Path:
    """Folders `base`, `sd21`, `dinov2` and `clip`."""
    write_base(root / "base")
    write_base(root / "sd21", unet=SD21, prediction_type="v_prediction")
    write_dinov2(root / "dinov2")
    write_clip(root / "clip")
    return root


def load_published(root: Path, *, base: str = "base", backbone: str = "dinov2", preset: Preset = TINY) -> ImprintModel:
    """A model with the weights of two of the folders."""
    sources: dict[Kind, Source] = {"base": Source("base", base), "backbone": Source("backbone", backbone)}
    return load_pretrained(preset, sources, seed=0, root=root)
