"""Pixels <=> latents. The codec owns the mask: it says which latents an image's hole touches."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imprint.core.pixels import MID_GREY

GREY = MID_GREY / 127.5 - 1.0  # imprint.core.pixels.MID_GREY in the model's range


def fill_hole(image: Float[Tensor, "b 3 s s"], hole: Bool[Tensor, "b 1 s s"]) -> Float[Tensor, "b 3 s s"]:
    """Image in [-1, 1] with the hole in mid-grey, as `imprint.core.prepare.fill_hole` does on uint8.

    Done in pixels before encoding: a codec's receptive field would carry the target object out of the hole.
    """
    return torch.where(hole, torch.full_like(image, GREY), image)


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Within it nothing is cast to half precision. The meta device, which has no numbers, has no autocast either."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class PixelUnshuffleCodec(nn.Module):
    """Stands in the place of a VAE: moves `factor` x `factor` pixels into channels. Exact, nothing to train."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, image: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Image in [-1, 1] => latents in [-1, 1]."""
        return F.pixel_unshuffle(image, self.factor)

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        """The inverse of `encode`, bit for bit."""
        return F.pixel_shuffle(latents, self.factor)

    def encode_hole(self, hole: Bool[Tensor, "b 1 s s"]) -> Float[Tensor, "b c h w"]:
        """Hole in pixels => keep mask M of the latents: 1 keeps the background, 0 lies in the hole. Exact."""
        keep = (~hole).expand(-1, 3, -1, -1).float()
        return F.pixel_unshuffle(keep, self.factor)

    def encode_background(
        self, image: Float[Tensor, "b 3 s s"], hole: Bool[Tensor, "b 1 s s"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Clean background latent of an image with a hole, and its keep mask M."""
        return self.encode(fill_hole(image, hole)), self.encode_hole(hole)

    def clamp(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Predicted clean latents limited to what an image can give."""
        return latents.clamp(-1.0, 1.0)


@dataclass(frozen=True)
class VaeCodec:
    """A frozen VAE. Its scaling factor appears nowhere else; encoding takes the posterior's mode, so it draws nothing.

    Always in float32: SD 1.5's decoder overflows in half precision.
    """

    vae: AutoencoderKL

    @property
    def cell_px(self) -> int:
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Image in [-1, 1] => latents of about unit variance."""
        with in_float32(image.device):
            posterior = self.vae.encode(image.float()).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            return posterior.mode() * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        """Close to the inverse of `encode`, and nowhere equal to it: what must stay is pasted back in pixels."""
        with in_float32(latents.device):
            return self.vae.decode(latents.float() / self.vae.config["scaling_factor"]).sample  # pyright: ignore[reportAttributeAccessIssue]

    def encode_hole(self, hole: Bool[Tensor, "b 1 s s"]) -> Float[Tensor, "b c h w"]:
        """Hole in pixels => keep mask M of the latents: a cell that any pixel of the hole lies in is not kept."""
        touched = F.max_pool2d(hole.float(), self.cell_px)
        return (1.0 - touched).expand(-1, self.vae.config["latent_channels"], -1, -1)

    def encode_background(
        self, image: Float[Tensor, "b 3 s s"], hole: Bool[Tensor, "b 1 s s"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Clean background latent of an image with a hole, and its keep mask M."""
        return self.encode(fill_hole(image, hole)), self.encode_hole(hole)

    def clamp(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents of a VAE have no sharp limits."""
        return latents
