"""The content adapter (paper: stage 1): DINOv2's tokens => the ID-preserving embedding, in the place of a text's."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.core.masks import MASK_LEVELS


class ContentAdapter(ModelMixin, ConfigMixin):
    """A linear map, a few transformer blocks and a LayerNorm. It also holds the other two learned conditions:

    the null token, which replaces the object for guidance, and one vector per mask level. The latter start at zero
    and get no gradient unless levels are given in training, so a model trained without them ignores them.
    """

    @register_to_config
    def __init__(self, input_dim: int, token_dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_dim, token_dim)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(token_dim, num_heads, token_dim // num_heads) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(token_dim)
        self.null_token = nn.Parameter(torch.randn(token_dim))  # tokens leave the LayerNorm with unit variance
        self.level_embedding = nn.Embedding(len(MASK_LEVELS), token_dim)
        nn.init.zeros_(self.level_embedding.weight)

    def forward(self, features: Float[Tensor, "b n f"]) -> Float[Tensor, "b n d"]:
        tokens = self.project(features)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def embed_levels(self, level: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Index into `imprint.core.masks.MASK_LEVELS` => the level's vector."""
        return self.level_embedding(level)
