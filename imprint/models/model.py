"""The model's parts and how they meet: backbone -> adapter -> tokens -> U-Net, on the codec's latents."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprint.appearance.network import AppearanceFlow
from imprint.models.adapter import ContentAdapter
from imprint.models.backbone import build_backbone, compute_features
from imprint.models.codec import PixelUnshuffleCodec, VaeCodec
from imprint.models.presets import Preset


class ObjectEncoder(nn.Module):
    """Backbone and content adapter alone: object on black in [-1, 1] -> tokens."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.backbone = build_backbone(preset.backbone)
        self.adapter = _build_adapter(preset)

    def encode_object(self, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n d"]:
        """As `ImprintModel.encode_object`."""
        return self.adapter(compute_features(self.backbone, reference))


class ImprintModel(nn.Module):
    """Object image -> tokens -> denoised latents.

    backbone: DINOv2 or CLIP; adapter: its features to the U-Net's condition; unet: predicts what
    `preset.prediction_type` says; codec: pixels <=> latents, by `vae` where the preset has one; appearance_flow: beyond
    the paper, None where the preset has none.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.backbone = build_backbone(preset.backbone)
        self.adapter = _build_adapter(preset)
        self.unet = _build_unet(preset)
        self.vae = None if preset.vae is None else _build_vae(preset.vae)
        self.codec = PixelUnshuffleCodec(preset.unshuffle) if self.vae is None else VaeCodec(self.vae)
        self.appearance_flow = None if preset.appearance_flow is None else _build_flow(preset)  # last: see build_model

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that have weights, by attribute."""
        optional = ("vae", "appearance_flow")
        return ("backbone", "adapter", "unet", *(part for part in optional if getattr(self, part) is not None))

    def encode_object(self, reference: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b n d"]:
        """Object on black in [-1, 1] => tokens: the class token, then one per patch."""
        return self.adapter(compute_features(self.backbone, reference))

    def encode_pictures(
        self,
        reference: Float[Tensor, "b 3 r r"],
        more: Float[Tensor, "b e 3 r r"],
        present: Bool[Tensor, "b e"],
    ) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"] | None]:
        """The reference and further pictures of each object (beyond the paper) => their tokens joined, and which count.

        A picture that is not `present` is never looked at: its tokens are zeros that do not count. Without further
        pictures (e is 0) it is `encode_object`, and all tokens count (None).
        """
        batch_size, count = present.shape
        if count == 0:
            return self.encode_object(reference), None
        pictures = torch.cat([reference[:, None], more], dim=1)
        present = torch.cat([present.new_ones(batch_size, 1), present], dim=1)
        encoded = self.encode_object(pictures[present])  # [v n d], v: pictures in all
        tokens = encoded.new_zeros(batch_size, 1 + count, *encoded.shape[1:])
        tokens[present] = encoded
        return tokens.flatten(1, 2), present.repeat_interleave(encoded.shape[1], dim=1)

    def null_tokens(self, batch_size: int, length: int | None = None) -> Float[Tensor, "b n d"]:
        """The learned "no object": one token, repeated to `length`, by default that of one picture."""
        return self.adapter.null_token.expand(batch_size, length or self.preset.num_tokens, -1)

    def denoise(
        self,
        x_t: Float[Tensor, "b c h w"],
        timestep: Int[Tensor, " b"],
        tokens: Float[Tensor, "b n d"],
        level: Int[Tensor, " b"] | None = None,
        counts: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One pass of the U-Net; `level` is an index into MASK_LEVELS, used where the preset is `pooled`.

        counts: which tokens are looked at; None: all.
        """
        condition = None
        if self.preset.pooled:
            condition = tokens.mean(dim=1) if counts is None else _mean_of_counting(tokens, counts)  # [b d]
            if level is not None:
                condition = condition + self.adapter.embed_levels(level)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        mask = {} if counts is None else {"encoder_attention_mask": counts}
        return self.unet(x_t, timestep, encoder_hidden_states=tokens, class_labels=condition, **mask).sample


def build_model(preset: Preset, seed: int) -> ImprintModel:
    """Random weights from `seed` alone; the global generator is left as it was. With an appearance flow the other
    parts' are the same as without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImprintModel(preset)
    nn.init.zeros_(model.unet.conv_out.weight)  # an untrained x0 model answers mid-grey, not noise
    return model.eval()


def _mean_of_counting(tokens: Tensor, counts: Tensor) -> Tensor:
    return (tokens * counts[..., None]).sum(dim=1) / counts.sum(dim=1, keepdim=True)


def _build_adapter(preset: Preset) -> ContentAdapter:
    return ContentAdapter(preset.backbone["hidden_size"], preset.token_dim, **preset.adapter)


def _build_flow(preset: Preset) -> AppearanceFlow:
    assert preset.appearance_flow is not None
    return AppearanceFlow(token_dim=preset.token_dim, **preset.appearance_flow)


def _build_unet(preset: Preset) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**preset.unet)
    # channels last is about a quarter faster on CPU
    return unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _build_vae(config: dict) -> AutoencoderKL:
    vae = AutoencoderKL(**config)
    vae.enable_slicing()  # one picture at a time: in float32 at 512 px a batch would take more memory than all else
    return vae
