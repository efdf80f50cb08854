"""Model sizes: presets of the same classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from imprint.models.configs import DINOV2_LARGE, SD15_UNET, SD15_VAE, Config

PredictionType = Literal["sample", "epsilon", "v_prediction"]
Encoder = Literal["dinov2", "clip"]
Blending = Literal["clean", "noised", "none"]

DETAIL_ZOOM = 2  # how much finer the detail crop is than the reference that it is taken from


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is sampled; the first three from 1.

    guidance: 1 is none, larger follows the object more strictly; draws: of noise per step, whose mean is taken (see
    `imprint.diffusion.sampling`), with 1 a solver follows one path; strength: from 1, the path starts at noise as in
    the paper, to 0, the picture of the appearance flow is all there is.
    """

    steps: int
    guidance: float
    draws: int
    strength: float = 1.0


# what a picture is sampled with where nobody says otherwise
BRIEFLY_TRAINED = Sampling(steps=3, guidance=1.5, draws=8)  # measured on the shipped base model: docs/log.md
FLOW_STRENGTH = 0.0  # of a model with an appearance flow
PRETRAINED = Sampling(steps=50, guidance=5.0, draws=1)  # after the habits of Stable Diffusion; not measured


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Everything that fixes a model's shape and what it means. Two models of one preset differ in their weights alone.

    backbone, adapter, unet, vae: arguments of the parts' classes; without a VAE pixels are moved into channels.
    """

    name: str
    size_px: int  # side of the scene, and of the target view in stage 1
    reference_px: int  # side of the picture that the backbone sees
    backbone: Config  # of transformers; `model_type` says which class
    adapter: Config  # layers and heads of the content adapter; its widths follow from its neighbours
    unet: Config
    vae: Config | None = None
    unshuffle: int = 1  # pixels per side of a latent cell where there is no VAE
    prediction_type: PredictionType
    # the noise schedule; with a terminal SNR of zero the last timestep is noise alone (Lin et al. 2024)
    zero_terminal_snr: bool = True
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    lora_rank: int = 0  # above 0 the U-Net trains by low-rank additions alone: a departure from the paper
    # beyond the paper; as they stand here the model is the paper's
    max_references: int = 1
    detail_crop: bool = False
    blending: Blending = "clean"  # of the background, in training and at inference alike
    appearance_flow: Config | None = None  # of `imprint.appearance.AppearanceFlow`; its token width follows

    @property
    def latent_channels(self) -> int:
        return self.unet["in_channels"]

    @property
    def cell_px(self) -> int:
        """Side of a latent cell, in pixels."""
        return self.unshuffle if self.vae is None else 2 ** (len(self.vae["block_out_channels"]) - 1)

    @property
    def latent_px(self) -> int:
        """Side of the latent grid, in cells."""
        return self.size_px // self.cell_px

    @property
    def sampling(self) -> Sampling:
        chosen = BRIEFLY_TRAINED if self.vae is None else PRETRAINED
        chosen = replace(chosen, draws=1) if self.blending == "none" else chosen
        return chosen if self.appearance_flow is None else replace(chosen, strength=FLOW_STRENGTH)

    @property
    def patch_px(self) -> int:
        return self.backbone["patch_size"]

    @property
    def token_dim(self) -> int:
        """Width of the object tokens: the U-Net's cross-attention dimension."""
        return self.unet["cross_attention_dim"]

    @property
    def num_tokens(self) -> int:
        """Of one picture: the class token, then one per patch."""
        return 1 + (self.reference_px // self.patch_px) ** 2

    @property
    def num_pictures(self) -> int:
        """Of the object, at most: each view of it, and where asked its detail crop."""
        return self.max_references * (2 if self.detail_crop else 1)

    @property
    def pooled(self) -> bool:
        """The mean object token (and the mask level) is added to the time embedding."""
        return self.unet.get("class_embed_type") == "projection"

    @property
    def canvas_px(self) -> int:
        """Side of the object canvas that the reference, and its detail crop, are taken from."""
        return self.reference_px * (DETAIL_ZOOM if self.detail_crop else 1)


def build_scratch_preset(
    *,
    name: str,
    size_px: int,
    reference_px: int,
    unshuffle: int,
    patch_px: int,
    backbone_width: int,
    backbone_layers: int,
    backbone_heads: int,
    token_dim: int,
    adapter_layers: int,
    adapter_heads: int,
    unet_widths: tuple[int, ...],
    unet_layers: int,
    unet_heads: int,
    norm_groups: int,
    pooled: bool,
    prediction_type: PredictionType,
) -> Preset:
    """A preset that trains from random weights, on pixels moved into channels. Cards of format 1 hold these numbers.

    unet_widths: one per resolution, fine to coarse, with cross-attention at every one; unet_layers: residual blocks per
    resolution on the way down (one more on the way up).
    """
    levels, channels = len(unet_widths), 3 * unshuffle**2
    return Preset(
        name=name,
        size_px=size_px,
        reference_px=reference_px,
        unshuffle=unshuffle,
        prediction_type=prediction_type,
        backbone={
            "model_type": "dinov2",
            "image_size": reference_px,
            "patch_size": patch_px,
            "hidden_size": backbone_width,
            "num_hidden_layers": backbone_layers,
            "num_attention_heads": backbone_heads,
        },
        adapter={"num_layers": adapter_layers, "num_heads": adapter_heads},
        unet={
            "sample_size": size_px // unshuffle,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": list(unet_widths),
            "down_block_types": ["CrossAttnDownBlock2D"] * levels,
            "up_block_types": ["CrossAttnUpBlock2D"] * levels,
            "layers_per_block": unet_layers,
            "cross_attention_dim": token_dim,
            "attention_head_dim": unet_heads,
            "norm_num_groups": norm_groups,
            "class_embed_type": "projection" if pooled else None,
            "projection_class_embeddings_input_dim": token_dim if pooled else None,
        },
    )


def choose_flow(preset: Preset, *, wanted: bool) -> Preset:
    """The preset with an appearance flow, or without one."""
    if not wanted:
        return replace(preset, appearance_flow=None)
    if preset.appearance_flow is not None:
        return preset
    tiny = preset.size_px <= 64
    widths, groups = ([16, 24, 32], 8) if tiny else ([48, 96, 160], 16)
    config = {"size_px": 64 if tiny else 128, "widths": widths, "num_heads": 4, "norm_groups": groups}
    return replace(preset, appearance_flow=config)


def choose_encoder(preset: Preset, encoder: Encoder) -> Preset:
    """The preset with a backbone of the same size of another family."""
    if encoder == find_encoder(preset):
        return preset
    kept = ("patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    backbone = {key: preset.backbone[key] for key in kept}
    if encoder == "clip":
        backbone |= {"model_type": "clip_vision_model", "intermediate_size": 4 * backbone["hidden_size"]}
    else:
        backbone |= {"model_type": "dinov2"}
    return replace(preset, backbone=backbone | {"image_size": preset.reference_px})


def find_encoder(preset: Preset) -> Encoder:
    """The family of the preset's backbone."""
    return "clip" if preset.backbone["model_type"] == "clip_vision_model" else "dinov2"


_TINY = build_scratch_preset(
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

_BASE = build_scratch_preset(
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

_SMALL = build_scratch_preset(
    name="small",
    size_px=128,
    reference_px=128,
    unshuffle=8,
    patch_px=16,
    backbone_width=256,
    backbone_layers=6,
    backbone_heads=8,
    token_dim=256,
    adapter_layers=2,
    adapter_heads=8,
    unet_widths=(96, 160, 256),
    unet_layers=2,
    unet_heads=8,
    norm_groups=32,
    pooled=True,
    prediction_type="sample",
)

_SD15 = Preset(
    name="sd15",
    size_px=512,
    reference_px=224,
    backbone=DINOV2_LARGE,
    adapter={"num_layers": 2, "num_heads": 8},
    unet=SD15_UNET,
    vae=SD15_VAE,
    prediction_type="epsilon",
    zero_terminal_snr=False,
)

# sd15's structure at a width for tests: every class and every level, in seconds
_SD15_TINY = Preset(
    name="sd15-tiny",
    size_px=64,
    reference_px=28,
    backbone=DINOV2_LARGE | {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56},
    adapter={"num_layers": 1, "num_heads": 2},
    unet=SD15_UNET
    | {
        "block_out_channels": [16, 32, 32, 32],
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    vae=SD15_VAE | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "layers_per_block": 1},
    prediction_type="epsilon",
    zero_terminal_snr=False,
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _TINY,
        _BASE,
        _SMALL,
        _SD15_TINY,
        _SD15,
        replace(_SD15, name="sd15-lora", lora_rank=16),
    )
}
