"""The network that answers with fields: a small U-Net over the scene with the reference pasted into it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imprint.appearance.fields import Fields
from imprint.appearance.placement import compute_placement
from imprint.appearance.rendering import apply_affine, build_grid
from imprint.core.masks import MASK_LEVELS
from imprint.core.pixels import MID_GREY

CELL_PX = 4  # pixels per side that are moved into channels
_INPUTS = 3 + 1 + 1 + 4  # background, hole, whether it is hidden, the pasted reference
_SCALE = 0.3  # of flow and affine map: the reference's half side is 1
_MAX_GAIN = 0.8  # of the logarithm
_NO_SHADOW = -3.0  # softplus of it is 0.05


class AppearanceFlow(ModelMixin, ConfigMixin):
    """Everything starts at the plain paste: the heads are zero at first.

    size_px: side of the pictures that it looks at; widths: of the U-Net, from a quarter of that side down; token_dim:
    of the identity encoder's tokens, which it attends to.
    """

    @register_to_config
    def __init__(self, size_px: int, token_dim: int, widths: tuple[int, ...], num_heads: int, norm_groups: int) -> None:
        super().__init__()
        depth = len(widths)
        self.unet = UNet2DConditionModel(
            sample_size=size_px // CELL_PX,
            in_channels=_INPUTS * CELL_PX**2,
            out_channels=widths[0],
            block_out_channels=tuple(widths),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (depth - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (depth - 1) + ("UpBlock2D",),
            layers_per_block=1,
            cross_attention_dim=token_dim,
            attention_head_dim=num_heads,
            norm_num_groups=norm_groups,
            class_embed_type="identity",
        )
        self.level_embedding = nn.Embedding(len(MASK_LEVELS) + 1, 4 * widths[0])  # the last: no level is given
        self.affine = _zero(nn.Linear(widths[0], 6))
        self.flow = _zero(nn.Conv2d(widths[0], 2, 3, padding=1, padding_mode="replicate"))
        self.gain = _zero(nn.Conv2d(widths[0], 3, 3, padding=1, padding_mode="replicate"))
        self.shadow = _zero(nn.Conv2d(widths[0], 3, 3, padding=1, padding_mode="replicate"))
        self.fill = _zero(nn.Conv2d(widths[0], 3, 3, padding=1, padding_mode="replicate"))
        self.error = _zero(nn.Linear(widths[0], 1))
        nn.init.constant_(self.shadow.bias, _NO_SHADOW)  # pyright: ignore[reportArgumentType]
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(
        self,
        background: Float[Tensor, "b 3 s s"],
        hole: Bool[Tensor, "b 1 s s"],
        *,
        hidden: Bool[Tensor, " b"],
        reference: Float[Tensor, "b 4 r r"],
        tokens: Float[Tensor, "b n d"],
        counts: Bool[Tensor, "b n"] | None,
        level: Int[Tensor, " b"] | None,
    ) -> Fields:
        """background: 0-1; its hole's content counts for nothing where it is `hidden`. reference: RGBA 0-1, colours
        premultiplied by the opacity; tokens: of the identity encoder, of which those count that `counts` names."""
        background = torch.where(hole & hidden[:, None, None, None], MID_GREY / 255.0, background)
        placement = compute_placement(reference[:, 3:], hole, level)
        size_px = self.config["size_px"]
        grid = build_grid(size_px, size_px, background.device)
        placed = F.grid_sample(reference, apply_affine(placement, grid), padding_mode="zeros", align_corners=False)
        inputs = torch.cat(
            [
                _resize(background, size_px) * 2.0 - 1.0,
                _resize(hole.float(), size_px),
                hidden.float()[:, None, None, None].expand(-1, 1, size_px, size_px),
                placed,
            ],
            dim=1,
        )
        features = self._compute_features(inputs, tokens=tokens, counts=counts, level=level)
        coarse, pooled = F.avg_pool2d(features, 2), features.mean(dim=(2, 3))
        with torch.autocast(features.device.type, enabled=False):  # a map in half precision is off by pixels
            features, coarse, pooled = features.float(), coarse.float(), pooled.float()
            change = _SCALE * self.affine(pooled).view(-1, 2, 3)
            return Fields(
                placement=placement,
                affine=placement + compose(change, placement),
                flow=_SCALE * self.flow(coarse),
                gain=_MAX_GAIN * torch.tanh(self.gain(coarse) / _MAX_GAIN),
                shadow=F.softplus(self.shadow(features)),
                fill=self.fill(features),
                log_error=self.error(pooled)[:, 0],
            )

    def _compute_features(
        self, inputs: Tensor, *, tokens: Tensor, counts: Tensor | None, level: Tensor | None
    ) -> Float[Tensor, "b c f f"]:
        count = len(inputs)
        if level is None:
            level = torch.full((count,), len(MASK_LEVELS), device=inputs.device)
        cells = F.pixel_unshuffle(inputs, CELL_PX).contiguous(memory_format=torch.channels_last)
        mask = {} if counts is None else {"encoder_attention_mask": counts}
        timestep = torch.zeros(count, dtype=torch.long, device=inputs.device)
        features = self.unet(
            cells, timestep, encoder_hidden_states=tokens, class_labels=self.level_embedding(level), **mask
        )
        return F.silu(features.sample)


def compose(outer: Float[Tensor, "b 2 3"], inner: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b 2 3"]:
    """First `inner`, then `outer`."""
    linear = outer[:, :, :2] @ inner
    return torch.cat([linear[:, :, :2], linear[:, :, 2:] + outer[:, :, 2:]], dim=2)


def _resize(picture: Float[Tensor, "b c h w"], size_px: int) -> Float[Tensor, "b c s s"]:
    if picture.shape[-1] == size_px:
        return picture
    return F.interpolate(picture, size=(size_px, size_px), mode="area")


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
