"""Low-rank additions to the U-Net's attention (LoRA, Hu et al. 2022), for cards with little memory. Not the paper's.

They live in training alone: what a stage exports has them merged into the weights and is an ordinary U-Net.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNet2DConditionModel, *, rank: int, seed: int) -> None:
    """Add them to every attention, at zero: the U-Net answers as before. A function of the seed."""
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config)


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Put the additions into the weights and leave none behind."""
    unet.fuse_lora()
    unet.unload_lora()
