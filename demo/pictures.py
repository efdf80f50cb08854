"""From linear radiance to sRGB bytes, and PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from demo.world import Light


def to_srgb(linear: np.ndarray, exposure: float) -> np.ndarray:
    """Linear radiance times exposure to sRGB bytes; highlights above 0.8 are rolled off, not cut."""
    value = np.maximum(linear * exposure, 0)
    value = np.where(value > 0.8, 0.8 + 0.2 * (1 - np.exp(-(value - 0.8) / 0.2)), value)
    curve = np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.maximum(value, 1e-6) ** (1 / 2.4) - 0.055)
    return np.round(np.clip(curve, 0, 1) * 255).astype(np.uint8)


def compute_exposure(linear: np.ndarray, level: float = 0.62) -> float:
    """Factor that brings the 85th percentile of the brightness to `level` (linear, 0..1)."""
    return level / max(float(np.percentile(linear[..., :3].mean(-1), 85)), 1e-4)


def compute_card_exposure(light: Light, level: float) -> float:
    """Factor that brings a white card in this light to `level` (linear): as a photographer would expose, whatever the
    object, so that dark things stay dark."""
    return level / (light.ambient + 0.7 * light.strength / np.pi)


def encode_cutout(linear: np.ndarray, exposure: float | None = None) -> np.ndarray:
    """RGBA bytes of a linear cut-out, clear pixels black; without an `exposure` its own brightness sets it."""
    if exposure is None:
        exposure = compute_exposure(linear[linear[..., 3] > 0.5], level=0.6)
    colour = to_srgb(linear[..., :3], exposure)
    alpha = np.round(linear[..., 3:] * 255).astype(np.uint8)
    return np.concatenate([colour * (alpha > 0), alpha], -1)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 grey, RGB or RGBA, through a temporary file beside the target."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {2: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[picture.shape[-1] if picture.ndim == 3 else 2]
    swapped = picture if order is None else cv2.cvtColor(picture, order)
    done, data = cv2.imencode(".png", swapped, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data.tobytes())
    partial.rename(path)
