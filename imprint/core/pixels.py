"""The one place for value ranges, layouts and image files.

Images on disk and in numpy are uint8 `[h, w, c]`; model images are float32 `[c, h, w]` in [-1, 1]; masks are bool.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from imprint.core.errors import InputError
from imprint.core.readers import decode_mask, decode_pixels, to_eight_bits

MID_GREY = 127  # what fills the hole before the background is encoded


def to_model_range(image: np.ndarray) -> np.ndarray:
    """uint8 [..., h, w, c] in [0, 255] => float32 [..., c, h, w] in [-1, 1]."""
    return np.moveaxis(image.astype(np.float32) / 127.5 - 1.0, -1, -3)


def from_model_range(image: np.ndarray) -> np.ndarray:
    """float [..., c, h, w] in [-1, 1] (clipped) => uint8 [..., h, w, c]."""
    scaled = np.moveaxis(np.clip(image, -1.0, 1.0), -3, -1) * 127.5 + 127.5
    return np.rint(scaled).astype(np.uint8)


def put_on_black(rgba: np.ndarray) -> np.ndarray:
    """RGBA uint8 [h, w, 4], alpha as opacity => RGB uint8 [h, w, 3], the object on black (paper: stage-1 figure)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    return np.rint(rgba[..., :3] * alpha).astype(np.uint8)


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, c] => uint8 [size_hw, c]: area average when smaller, cubic when larger."""
    if image.shape[:2] == tuple(size_hw):
        return image
    smaller = size_hw[0] < image.shape[0]
    return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def resize_mask(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """[h, w] bool => [size_hw] bool; a pixel is true where at least half of it was."""
    if mask.shape == tuple(size_hw):
        return mask.astype(bool)
    smaller = size_hw[0] < mask.shape[0]
    shares = cv2.resize(
        mask.astype(np.float32), (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    return shares >= 0.5


def load_image(path: str | Path, what: str = "image") -> np.ndarray:
    """uint8 [h, w, 3] RGB or [h, w, 4] RGBA. `InputError` names `what` and the file if it is missing or unreadable."""
    return decode_image(_read_bytes(path, what), f"{what} {path}")


def load_mask(path: str | Path, what: str = "mask") -> np.ndarray:
    """[h, w] bool, true where it is white; what counts as that in which kind of file, `readers.read_mask` says."""
    return decode_mask(_read_bytes(path, what), f"{what} {path}")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """An image's bytes => uint8 [h, w, 3] RGB or [h, w, 4] RGBA, upright; `InputError` names `name` if it is none."""
    image = decode_pixels(data)
    if image is None:
        raise InputError(f"{name} is not a readable image; give a PNG, JPEG or WebP file")
    image = to_eight_bits(image)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image


def encode_image(image: np.ndarray, suffix: str = ".png", quality: int = 95) -> bytes:
    """uint8 grey [h, w], RGB or RGBA => bytes of a `.png`, `.jpg` or `.webp` file; bool masks become 0 and 255."""
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    options = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, quality], ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality]}
    ok, data = cv2.imencode(suffix, image, options.get(suffix, []))
    if not ok:
        raise ValueError(f"OpenCV could not encode {suffix}")
    return data.tobytes()


def save_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image or a bool mask atomically; the format follows the suffix."""
    from imprint.core.files import write_bytes_atomic

    suffix = os.path.splitext(str(path))[1].lower() or ".png"
    if suffix not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{path}: unknown image suffix; use .png, .jpg or .webp")
    write_bytes_atomic(Path(path), encode_image(image, ".jpg" if suffix == ".jpeg" else suffix))


def _read_bytes(path: str | Path, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except IsADirectoryError:
        raise InputError(f"{what} {path} is a folder; give an image file") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}); check the path") from None
