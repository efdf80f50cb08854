"""Image files of any format and form that people have: turned upright, at eight bits; and what a mask file means."""

from __future__ import annotations

import io

import cv2
import numpy as np

from imprint.core.errors import InputError

_ORIENTATION = 0x0112  # EXIF
_EXIF_MARKERS = (b"eXIf", b"EXIF", b"Exif", b"exif", b"tiff:Orientation")
_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE_AT, _PALETTE = 25, 3  # where a PNG says its colour type; cv2 loses a palette's transparent entry
_TURNS = {  # EXIF orientation => whether to transpose, then the axes to flip
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
_MAX_IDS = 32  # values below it, more than two of them, are numbers of objects and no greys
_FLAT_RANGE = 32  # of 255, in each channel: paint of one colour, with what a lossy format makes of it
_NOISE_RANGE = 8  # of 255: greys no wider apart are one, with what a lossy format makes of it
_NEAR = 0.15  # of the way from darkest to brightest
_MAX_VARIETY = 20.0  # of 255, mean over what is not dark: a JPEG's noise stays below, a photograph's colours do not
_REMEDY = "give a black picture, white where the object goes"
_MIN_NEAR_SHARE_PAINT = 0.9  # of paint on a layer, which has no soft rim of its own
_MIN_NEAR_SHARE = 0.5  # of a mask's pixels lie near one of its ends; a photograph's lie between


def decode_pixels(data: bytes) -> np.ndarray | None:
    """Encoded bytes => [h, w], RGB [h, w, 3] or RGBA [h, w, 4] as stored (uint8, uint16, a TIFF's floats), upright by
    EXIF; a palette's colours. None if they are no image. Of several pictures in a file the first."""
    image = _decode_by_cv2(data) if _suits_cv2(data) else None
    return _decode_by_pillow(data) if image is None else image


def _suits_cv2(data: bytes) -> bool:
    """JPEG, PNG without a palette, WebP, BMP: the faster decoder, which keeps 16 bits of colour."""
    if data.startswith(_PNG):
        return data[_PALETTE_AT : _PALETTE_AT + 1] != bytes([_PALETTE])
    return data.startswith((b"\xff\xd8", b"BM")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _decode_by_cv2(data: bytes) -> np.ndarray | None:
    is_jpeg = data.startswith(b"\xff\xd8")  # turned by cv2 itself; the flag that keeps an alpha channel turns nothing
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED)
    if image is None:
        return None
    if image.ndim == 3:
        if image.shape[2] == 1:
            image = image[..., 0]
        else:
            image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if is_jpeg or not any(marker in data for marker in _EXIF_MARKERS):
        return image
    return turn_upright(image, _read_orientation(data))


def _read_orientation(data: bytes) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):  # a broken tag leaves the picture as it lies
        return 1


def turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, ...] as stored => as it was seen, by EXIF's orientation (1-8; others change nothing)."""
    transpose, axes = _TURNS.get(orientation, (False, ()))
    return np.ascontiguousarray(np.flip(image.swapaxes(0, 1) if transpose else image, axes))


def _decode_by_pillow(data: bytes) -> np.ndarray | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode == "F" or image.mode.startswith("I"):
                return np.array(image)
            if image.mode in ("L", "1") and "transparency" not in image.info:
                return np.array(image.convert("L"))
            return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, Image.DecompressionBombError):
        return None


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Any stored range => uint8: floats are 0 to 1, whole numbers above 255 are 16 bits wide."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        scale = 255.0 if np.nanmax(pixels, initial=0.0) <= 1.0 else 1.0
        return np.rint(np.clip(np.nan_to_num(pixels) * scale, 0.0, 255.0)).astype(np.uint8)
    if pixels.dtype == np.uint16 or pixels.max(initial=0) > 255:
        return (np.clip(pixels, 0, 65535) // 257).astype(np.uint8)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Encoded bytes => bool [h, w], true where the mask is white. `InputError` says what else `name` holds."""
    pixels = decode_pixels(data)
    if pixels is None:
        raise InputError(f"{name} is not a readable image; give a PNG or JPEG file")
    return read_mask(pixels, name)


def read_mask(pixels: np.ndarray, name: str = "the mask") -> np.ndarray:
    """[h, w], [h, w, 1], RGB or RGBA, of any range => bool [h, w].

    Two values mean what they look like, whatever they are: the brighter one is the place. Of paint on a transparent
    layer the paint is. Greys count from half way between the darkest and the brightest. `InputError` says what it is if
    it is no mask: a photograph, numbers of objects, one grey everywhere.
    """
    colours = pixels[..., None] if pixels.ndim == 2 else pixels
    if colours.shape[2] in (2, 4):
        colours, alpha = colours[..., :-1], to_eight_bits(colours[..., -1])
        if not alpha.any():
            raise InputError(f"{name} is transparent everywhere; paint white where the object goes")
        if alpha.min() < 128 <= alpha.max():
            return _read_layer(to_eight_bits(colours), alpha, name)
    return _read_colours(colours, name)


def _read_colours(colours: np.ndarray, name: str, *, min_near_share: float = _MIN_NEAR_SHARE) -> np.ndarray:
    levels = compute_levels(colours)
    place = _read_levels(levels, name, min_near_share=min_near_share)
    if colours.shape[2] == 3 and colours.dtype == np.uint8 and _measure_variety(colours, levels) > _MAX_VARIETY:
        raise InputError(f"{name} is no mask but a picture of many colours; {_REMEDY}")
    return place


def _measure_variety(colours: np.ndarray, levels: np.ndarray) -> float:
    """Mean distance, of 255, from the mixtures of the darkest and the brightest colour: those of one brush, however
    soft, are none; those of a photograph are."""
    ends = [colours.reshape(-1, 3)[at].astype(np.float32) for at in (levels.argmin(), levels.argmax())]
    low, high = float(levels.min()), float(levels.max())
    shares = (levels - low) / max(high - low, 1.0)
    mixed = ends[0] + shares[..., None] * (ends[1] - ends[0])
    return float(np.abs(colours - mixed)[shares > _NEAR].mean())


def compute_levels(colours: np.ndarray) -> np.ndarray:
    """Brightness float32 [h, w] of [h, w, 1] or RGB, in the stored range; equal only where the colours are equal."""
    if colours.shape[2] == 1:
        return np.nan_to_num(colours[..., 0].astype(np.float32))
    return colours.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _read_layer(colours: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """A picture with clear places: paint of one colour marks by where it lies, black and white by their colour."""
    painted = colours[alpha > 127]
    if (np.ptp(painted.astype(np.int16), axis=0) <= _FLAT_RANGE).all():
        return alpha > 127
    try:
        place = np.zeros(alpha.shape, bool)
        place[alpha > 127] = _read_colours(painted[None], name, min_near_share=_MIN_NEAR_SHARE_PAINT)[0]
        return place
    except InputError:
        raise InputError(
            f"{name} is a picture with clear places, and does not say whether those are meant or the rest; {_REMEDY}"
        ) from None


def _read_levels(levels: np.ndarray, name: str, *, min_near_share: float) -> np.ndarray:
    values: np.ndarray = np.unique(levels)
    low, high = float(levels.min()), float(levels.max())
    if len(values) == 1:
        if low in (0.0, 255.0, 65535.0):
            return levels > 0
        raise InputError(
            f"{name} has one grey everywhere ({low:g}); paint white where the object goes, black elsewhere"
        )
    if len(values) == 2:
        return levels == high
    if high > 1.0 and high < _MAX_IDS and (values == np.rint(values)).all():
        some = ", ".join(f"{value:g}" for value in values[:4])
        raise InputError(
            f"{name} holds the values {some} ..., as numbers of objects; give the mask of one, white on black"
        )
    if 1.0 < high <= 255.0 and high - low <= _NOISE_RANGE:  # one grey that a lossy format wrote
        return np.full(levels.shape, low > 127)
    shares = (levels - low) / (high - low)
    if ((shares < _NEAR) | (shares > 1.0 - _NEAR)).mean() < min_near_share:
        raise InputError(f"{name} is no mask: most of it is neither dark nor bright, as in a photograph; {_REMEDY}")
    return shares > 0.5
