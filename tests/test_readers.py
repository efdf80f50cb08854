"""What people have for a picture or a mask: every format means what it looks like, or is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.frames.pictures import BadPicture, load_ids, load_objects
from imprint.core.errors import InputError
from imprint.core.pixels import decode_image
from imprint.core.readers import decode_mask, turn_upright
from imprint.inference.inputs import check_object, is_cut_out

PLACE = np.zeros((48, 64), bool)
PLACE[10:30, 20:44] = True
GREY = PLACE.astype(np.uint8)


def encode(image: Any, suffix: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, suffix, **options)
    return buffer.getvalue()


def make_photograph() -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    noise = np.random.default_rng(0).integers(-20, 20, (48, 64, 3))
    return np.clip(np.dstack([60 + rows * 3, 40 + columns * 3, 200 - rows - columns]) + noise, 0, 255).astype(np.uint8)


def make_palette(*colours: tuple[int, int, int], indices: np.ndarray = GREY) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def paint_layer(colour: int) -> np.ndarray:
    return np.dstack([np.full((48, 64, 3), colour, np.uint8), GREY * 255])


MASKS = {
    "black and white": encode(GREY * 255),
    "zeros and ones": encode(GREY),
    "two greys": encode(GREY * 60 + 30),
    "one bit": encode(PLACE),
    "16 bits": encode(GREY.astype(np.uint16) * 65535),
    "16 bits, zeros and ones": encode(GREY.astype(np.uint16)),
    "floats": cv2.imencode(".tiff", PLACE.astype(np.float32))[1].tobytes(),
    "palette, black first": encode(make_palette((0, 0, 0), (255, 255, 255))),
    "palette, white first": encode(make_palette((255, 255, 255), (0, 0, 0), indices=1 - GREY)),
    "palette of DAVIS": encode(make_palette((0, 0, 0), (128, 0, 0))),
    "red brush": encode(np.dstack([GREY * 255, GREY * 0, GREY * 0])),
    "blue on black": encode(np.dstack([GREY * 0, GREY * 0, GREY * 255])),
    "white on transparent": encode(paint_layer(255)),
    "black on transparent": encode(paint_layer(0)),
    "grey and alpha": encode(np.dstack([np.full_like(GREY, 255), GREY * 255])),
    "opaque alpha": encode(np.dstack([GREY * 255] * 3 + [np.full_like(GREY, 255)])),
    "JPEG": encode(GREY * 255, "JPEG", quality=60),
    "GIF": encode(GREY * 255, "GIF"),
    "WebP": encode(np.dstack([GREY * 255] * 3), "WEBP"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_of_any_kind_means_what_it_looks_like(kind: str) -> None:
    np.testing.assert_array_equal(decode_mask(MASKS[kind], kind), PLACE)


def test_soft_mask_counts_from_half_way() -> None:
    soft = cv2.GaussianBlur(GREY * 255, (0, 0), 2)
    np.testing.assert_array_equal(decode_mask(encode(soft), "soft"), soft > 127)


NO_MASKS = {
    "photograph": (encode(make_photograph()), "photograph"),
    "grey photograph": (encode(Image.fromarray(make_photograph()).convert("L")), "photograph"),
    "erased hole": (encode(np.dstack([make_photograph(), (1 - GREY) * 255])), "clear places"),
    "cut-out": (encode(np.dstack([make_photograph(), GREY * 255])), "clear places"),
    "dark photograph": (encode(np.where(PLACE[..., None], make_photograph(), 0).astype(np.uint8)), "many colours"),
    "dark cut-out": (
        encode(np.dstack([make_photograph() // 4 * (np.array([4, 1, 1], np.uint8)), GREY * 255])),
        "clear places",
    ),
    "numbers": (encode(GREY + np.eye(48, 64, dtype=np.uint8) * 2), "numbers of objects"),
    "one grey": (encode(np.full_like(GREY, 100)), "one grey everywhere"),
    "nothing": (encode(np.zeros((48, 64, 4), np.uint8)), "transparent everywhere"),
    "no image": (b"no image", "not a readable image"),
}


@pytest.mark.parametrize("kind", NO_MASKS)
def test_what_is_no_mask_is_refused_by_what_it_is(kind: str) -> None:
    data, told = NO_MASKS[kind]
    with pytest.raises(InputError, match=f"mask.png.*{told}"):
        decode_mask(data, "mask.png")


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_as_its_exif_says(suffix: str, orientation: int) -> None:
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:32, :48] = (240, 20, 20)
    stored[:32, 48:] = (20, 240, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(stored, suffix, exif=exif), suffix)
    expected = turn_upright(stored, orientation)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected)[8:-8, 8:-8].mean() < 12


def test_turns_are_those_of_pillow() -> None:
    from PIL import ImageOps

    stored = make_photograph()
    for orientation in range(1, 9):
        image = Image.fromarray(stored)
        image.getexif()[0x0112] = orientation
        np.testing.assert_array_equal(turn_upright(stored, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_mask_and_alpha_are_turned_with_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode_mask(encode(GREY * 255, exif=exif), "m"), turn_upright(PLACE, 6))
    cut_out = np.dstack([make_photograph(), GREY * 255])
    np.testing.assert_array_equal(decode_image(encode(cut_out, exif=exif), "o"), turn_upright(cut_out, 6))


def test_transparent_entry_of_a_palette_is_alpha() -> None:
    data = encode(make_palette((10, 20, 30), (200, 90, 40)), transparency=0)
    np.testing.assert_array_equal(decode_image(data, "o")[..., 3] > 127, PLACE)


def test_sixteen_bits_of_colour_become_eight() -> None:
    picture = make_photograph()
    data = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, "o"), picture)


def test_stray_transparency_is_no_cut_out() -> None:
    alpha = np.full((48, 64), 255, np.uint8)
    assert not is_cut_out(alpha)
    assert not is_cut_out(np.full_like(alpha, 254))
    alpha[0, 0] = 0
    assert not is_cut_out(alpha)
    alpha[[0, -1]] = alpha[:, [0, -1]] = 0  # a rim
    assert not is_cut_out(alpha)
    assert is_cut_out(GREY * 255)
    alpha[:12, :12] = 0
    assert is_cut_out(alpha)


def test_glass_is_told_how_opaque_it_is() -> None:
    with pytest.raises(InputError, match="39% opaque"):
        check_object(np.dstack([make_photograph(), GREY * 100]), "glass.png")


@pytest.mark.parametrize("kind", sorted(set(MASKS) - {"floats"}))
def test_masks_of_views_are_read_as_the_composites(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mask.png").write_bytes(MASKS[kind])
    np.testing.assert_array_equal(load_objects(tmp_path / "mask.png", "views", False), GREY)


def test_numbers_of_a_palette_follow_its_colours(tmp_path: Path) -> None:
    """An optimiser sorts a palette anew in each file: the red object of DAVIS stays the first one."""
    red, green, black = (128, 0, 0), (0, 128, 0), (0, 0, 0)
    numbers = GREY + np.pad(GREY[11:30], ((29, 0), (0, 0)))[:48]
    numbers[40:, :10] = 2
    make_palette(black, red, green, indices=numbers).save(tmp_path / "plain.png")
    order = np.array([2, 1, 0], np.uint8)  # black is the third entry, red the second, green the first
    make_palette(green, red, black, indices=order[numbers]).save(tmp_path / "sorted.png")
    np.testing.assert_array_equal(load_ids(tmp_path / "plain.png"), numbers)
    np.testing.assert_array_equal(load_ids(tmp_path / "sorted.png"), numbers)


def test_black_and_white_of_a_sequence_in_any_form(tmp_path: Path) -> None:
    for name in ("palette, black first", "palette, white first", "16 bits", "one bit", "black and white"):
        (tmp_path / "mask.png").write_bytes(MASKS[name])
        np.testing.assert_array_equal(load_ids(tmp_path / "mask.png"), GREY * 255)
    (tmp_path / "mask.png").write_bytes(MASKS["zeros and ones"])
    np.testing.assert_array_equal(load_ids(tmp_path / "mask.png"), GREY)
    (tmp_path / "mask.png").write_bytes(encode(make_photograph()))
    with pytest.raises(BadPicture):
        load_ids(tmp_path / "mask.png")
