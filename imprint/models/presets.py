"""Model sizes: presets of the same classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PredictionType = Literal["sample", "epsilon", "v_prediction"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that fixes a model's shape. Two models of one preset differ in their weights alone."""

    name: str
    size_px: int  # side of the scene, and of the target view in stage 1
    reference_px: int  # side of the object canvas that the backbone sees
    unshuffle: int  # pixels per side of a latent cell
    patch_px: int  # DINOv2's patch
    backbone_width: int
    backbone_layers: int
    backbone_heads: int
    token_dim: int  # width of the object tokens, the U-Net's cross-attention dimension
    adapter_layers: int
    adapter_heads: int
    unet_widths: tuple[int, ...]  # one per resolution, fine to coarse; cross-attention at every one
    unet_layers: int  # residual blocks per resolution on the way down (one more on the way up)
    unet_heads: int
    norm_groups: int
    pooled: bool  # the mean object token is added to the time embedding
    prediction_type: PredictionType

    @property
    def latent_channels(self) -> int:
        return 3 * self.unshuffle**2

    @property
    def latent_px(self) -> int:
        """Side of the latent grid, in cells."""
        return self.size_px // self.unshuffle


_TINY = Preset(
    name="tiny",
    size_px=64,
    reference_px=64,
    unshuffle=8,
    patch_px=16,
    backbone_width=64,
    backbone_layers=2,
    backbone_heads=2,
    token_dim=64,
    adapter_layers=1,
    adapter_heads=2,
    unet_widths=(32, 48),
    unet_layers=1,
    unet_heads=2,
    norm_groups=8,
    pooled=True,
    prediction_type="sample",
)

_BASE = Preset(
    name="base",
    size_px=128,
    reference_px=128,
    unshuffle=8,
    patch_px=16,
    backbone_width=128,
    backbone_layers=4,
    backbone_heads=4,
    token_dim=128,
    adapter_layers=2,
    adapter_heads=4,
    unet_widths=(64, 96, 128),
    unet_layers=1,
    unet_heads=4,
    norm_groups=16,
    pooled=True,
    prediction_type="sample",
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (_TINY, _BASE)}
