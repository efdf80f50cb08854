"""Pictures in and out of a served model: each is the bytes of a PNG or JPEG file in a binary column."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import numpy as np

from imprint.core.errors import InputError
from imprint.core.pixels import decode_image, encode_image
from imprint.core.readers import decode_mask

_EXAMPLE_PX = 64


def read_pictures(column: Iterable[object], name: str) -> list[np.ndarray]:
    """uint8 [h, w, 3 or 4] of every row; `InputError` names the column and the row that is no picture."""
    return [decode_image(_to_bytes(value, f"{name}[{row}]"), f"{name}[{row}]") for row, value in enumerate(column)]


def read_masks(column: Iterable[object], name: str) -> list[np.ndarray]:
    """bool [h, w] of every row, as for the command's mask; `InputError` names the column and the row that is none."""
    return [decode_mask(_to_bytes(value, f"{name}[{row}]"), f"{name}[{row}]") for row, value in enumerate(column)]


def build_example(*names: str) -> dict[str, bytes]:
    """PNGs for a model's input example: an `object` (a disc with alpha), a `background`, a `mask` of the same size."""
    rows, columns = np.mgrid[:_EXAMPLE_PX, :_EXAMPLE_PX]
    disc = np.hypot(rows - _EXAMPLE_PX / 2, columns - _EXAMPLE_PX / 2) < _EXAMPLE_PX / 3
    ramp = (rows * 255 // _EXAMPLE_PX).astype(np.uint8)
    pictures = {
        "object": np.dstack([np.full_like(ramp, 200), ramp, np.full_like(ramp, 40), disc.astype(np.uint8) * 255]),
        "background": np.dstack([ramp, ramp, np.full_like(ramp, 128)]),
        "mask": disc.astype(np.uint8) * 255,
    }
    return {name: encode_image(pictures[name]) for name in names}


def _to_bytes(value: object, name: str) -> bytes:
    """Bytes as they are; MLflow's JSON carries base64 text, in some versions with newlines."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error:
            raise InputError(f"{name} is no base64 text; give the bytes of an image file") from None
    raise InputError(f"{name} is {type(value).__name__}; give the bytes of an image file")
