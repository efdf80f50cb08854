"""The model's four parts and how they meet: backbone -> adapter -> tokens -> U-Net, on the codec's latents."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from imprint.models.adapter import ContentAdapter
from imprint.models.codec import PixelUnshuffleCodec
from imprint.models.presets import Preset

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # DINOv2's input statistics, for images in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class ObjectEncoder(nn.Module):
    """Backbone and content adapter alone: object on black in [-1, 1] -> tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.backbone = _build_backbone(preset)
        self.adapter = _build_adapter(preset)

    def encode_object(self, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n d"]:
        """As `ImprintModel.encode_object`."""
        return self.adapter(compute_features(self.backbone, reference))


class ImprintModel(nn.Module):
    """Object image -> tokens -> denoised latents.

    backbone: DINOv2; adapter: its features to the U-Net's condition; unet: predicts what `preset.prediction_type` says;
    codec: pixels <=> latents.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.backbone = _build_backbone(preset)
        self.adapter = _build_adapter(preset)
        self.unet = _build_unet(preset)
        self.codec = PixelUnshuffleCodec(preset.unshuffle)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def encode_object(self, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n d"]:
        """Object on black in [-1, 1] => tokens: the class token, then one per patch."""
        return self.adapter(compute_features(self.backbone, reference))

    def null_tokens(self, batch_size: int) -> Float[Tensor, "b n d"]:
        """The learned "no object": one token, repeated to the length of an object's."""
        length = 1 + (self.preset.reference_px // self.preset.patch_px) ** 2
        return self.adapter.null_token.expand(batch_size, length, -1)

    def denoise(
        self,
        x_t: Float[Tensor, "b c h w"],
        timestep: Int[Tensor, " b"],
        tokens: Float[Tensor, "b n d"],
        level: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One pass of the U-Net; `level` is an index into MASK_LEVELS, used where the preset is `pooled`."""
        condition = None
        if self.preset.pooled:
            condition = tokens.mean(dim=1)  # [b d]
            if level is not None:
                condition = condition + self.adapter.embed_levels(level)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        return self.unet(x_t, timestep, encoder_hidden_states=tokens, class_labels=condition).sample


def compute_features(backbone: Dinov2Model, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n f"]:
    """Object on black in [-1, 1] => the backbone's last hidden state, of pixels as DINOv2 was trained on them."""
    mean = reference.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = reference.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return backbone(pixel_values=(reference * 0.5 + 0.5 - mean) / std).last_hidden_state


def build_model(preset: Preset, seed: int) -> ImprintModel:
    """Random weights from `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImprintModel(preset)
    nn.init.zeros_(model.unet.conv_out.weight)  # an untrained x0 model answers mid-grey, not noise
    return model.eval()


def _build_backbone(preset: Preset) -> Dinov2Model:
    config = Dinov2Config(
        image_size=preset.reference_px,
        patch_size=preset.patch_px,
        hidden_size=preset.backbone_width,
        num_hidden_layers=preset.backbone_layers,
        num_attention_heads=preset.backbone_heads,
    )
    return Dinov2Model(config)


def _build_adapter(preset: Preset) -> ContentAdapter:
    return ContentAdapter(preset.backbone_width, preset.token_dim, preset.adapter_layers, preset.adapter_heads)


def _build_unet(preset: Preset) -> UNet2DConditionModel:
    levels = len(preset.unet_widths)
    unet = UNet2DConditionModel(
        sample_size=preset.latent_px,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        block_out_channels=preset.unet_widths,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=preset.unet_layers,
        cross_attention_dim=preset.token_dim,
        attention_head_dim=preset.unet_heads,  # diffusers' historical name for the number of heads
        norm_num_groups=preset.norm_groups,
        class_embed_type="projection" if preset.pooled else None,
        projection_class_embeddings_input_dim=preset.token_dim if preset.pooled else None,
    )
    # channels last is about a quarter faster on CPU
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
