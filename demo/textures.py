"""Bitmap textures drawn with numpy and OpenCV: uint8 sRGB (H, W, 3), row 0 at the top."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

SIZE_PX = 256
SYLLABLES = (
    "ba",
    "ko",
    "lu",
    "mi",
    "no",
    "ra",
    "ti",
    "vo",
    "ze",
    "pa",
    "du",
    "fe",
    "gi",
    "jo",
    "ka",
    "le",
    "mo",
    "nu",
    "ri",
    "so",
    "ta",
    "vi",
    "wo",
    "xe",
    "yu",
    "zo",
)
FOREIGN_SYLLABLES = ("sch", "ork", "wu", "bry", "eth", "ik", "cha", "um", "plo", "ys", "qui", "ag")
Colour = tuple[int, int, int]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """sRGB bytes of a colour given by hue, saturation and value, each 0..1 (the hue wraps)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def vivid_palette(seed: int, rng: np.random.Generator) -> list[Colour]:
    """Four saturated colours and two neutrals; the first hue of neighbouring seeds is 222 degrees apart."""
    first = seed * 0.6180339887 + 0.03 * rng.standard_normal()
    offsets = [0.0, rng.choice([0.5, 0.42, 0.36]), rng.choice([0.14, 0.2, 0.7]), rng.choice([0.62, 0.8, 0.28])]
    colours = [hsv(first + o, rng.uniform(0.72, 1.0), rng.uniform(0.7, 1.0)) for o in offsets]
    return [*colours, hsv(first + 0.1, 0.08, 0.95), hsv(first, 0.5, rng.uniform(0.12, 0.25))]


def muted_palette(rng: np.random.Generator) -> list[Colour]:
    """Three quiet colours for floors and walls, mostly greyish, now and then stronger."""
    hue = rng.uniform()
    saturation = rng.choice([0.06, 0.16, 0.3, 0.48], p=[0.3, 0.35, 0.25, 0.1])
    value = rng.uniform(0.45, 0.95)
    steps = [0.0, rng.uniform(-0.22, -0.1), rng.uniform(0.06, 0.15)]
    return [hsv(hue + 0.1 * s, saturation, float(np.clip(value + s, 0.15, 1.0))) for s in steps]


def _canvas(colour: Colour, size: int = SIZE_PX) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def smooth_noise(rng: np.random.Generator, *, cells: int = 6, octaves: int = 3, size: int = SIZE_PX) -> np.ndarray:
    """Float image (size, size) in 0..1 that tiles: sums of cubically enlarged random grids."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        count = cells * 2**octave
        grid = np.pad(rng.random((count, count), np.float32), 2, mode="wrap")
        scale = size // count + 1
        big = cv2.resize(grid, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        inner = big[2 * scale : 2 * scale + count * scale, 2 * scale : 2 * scale + count * scale]
        total += cv2.resize(inner, (size, size), interpolation=cv2.INTER_AREA) / 2**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _mix(first: Colour, second: Colour, amount: np.ndarray) -> np.ndarray:
    amount = np.clip(amount, 0, 1)[..., None]
    return np.round(np.asarray(first) * (1 - amount) + np.asarray(second) * amount).astype(np.uint8)


def word(rng: np.random.Generator, syllables: tuple[str, ...] = SYLLABLES) -> str:
    """An invented word of two or three different syllables, in capitals."""
    return "".join(rng.choice(syllables, size=int(rng.integers(2, 4)), replace=False)).upper()


def put_word(
    image: np.ndarray,
    text: str,
    box: tuple[float, float, float, float],
    colour: Colour,
    font: int = cv2.FONT_HERSHEY_DUPLEX,
) -> None:
    """Write the text into box = (y0, x0, y1, x1), fractions of the image, as large as it fits. In place."""
    height, width = image.shape[:2]
    y0, x0, y1, x1 = box[0] * height, box[1] * width, box[2] * height, box[3] * width
    (text_w, text_h), _ = cv2.getTextSize(text, font, 1.0, 2)
    scale = min((x1 - x0) / text_w, (y1 - y0) / (text_h * 1.25))
    thick = max(2, round(2.6 * scale))
    origin = (int((x0 + x1 - text_w * scale) / 2), int((y0 + y1 + text_h * scale) / 2))
    cv2.putText(image, text, origin, font, scale, colour, thick, cv2.LINE_AA)


def put_mark(
    image: np.ndarray, rng: np.random.Generator, centre: tuple[float, float], size: float, colours: list
) -> None:
    """Draw a logo-like mark (disc, star, ring, drop, chevron) at centre = (y, x); in fractions. In place."""
    extent = image.shape[0]
    middle = np.array([centre[1], centre[0]]) * extent
    radius = size * extent
    kind = rng.integers(5)
    if kind == 0:
        cv2.circle(image, tuple(map(int, middle)), int(radius), colours[0], -1, cv2.LINE_AA)
        cv2.circle(image, tuple(map(int, middle)), int(radius * 0.55), colours[1], -1, cv2.LINE_AA)
    elif kind == 1:
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        reach = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
        points = middle + np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1)
        cv2.fillPoly(image, [points.astype(np.int32)], colours[0], cv2.LINE_AA)
    elif kind == 2:
        cv2.circle(
            image, tuple(map(int, middle)), int(radius * 0.8), colours[0], max(3, int(radius * 0.35)), cv2.LINE_AA
        )
        cv2.line(image, tuple(map(int, middle - radius)), tuple(map(int, middle + radius)), colours[1], 9, cv2.LINE_AA)
    elif kind == 3:
        points = middle + radius * np.array([[0, -1], [0.9, 0.9], [-0.9, 0.9]])
        cv2.fillPoly(image, [points.astype(np.int32)], colours[0], cv2.LINE_AA)
        cv2.circle(
            image,
            tuple(map(int, middle + np.array([0, radius * 0.35]))),
            int(radius * 0.35),
            colours[1],
            -1,
            cv2.LINE_AA,
        )
    else:
        for shift, colour in ((-0.45, colours[0]), (0.35, colours[1])):
            points = middle + radius * np.array([[-0.9, 0.3 + shift], [0, shift - 0.5], [0.9, 0.3 + shift]])
            cv2.polylines(image, [points.astype(np.int32)], False, colour, max(4, int(radius * 0.35)), cv2.LINE_AA)


def stripes(rng: np.random.Generator, colours: list[Colour], *, vertical: bool | None = None) -> np.ndarray:
    """Even stripes in two or three colours, along an axis or at 45 degrees; they tile."""
    across, down = np.meshgrid(np.arange(SIZE_PX), np.arange(SIZE_PX))
    choice = int(rng.integers(3)) if vertical is None else int(not vertical)
    line = [across, down, across + down][choice] / SIZE_PX
    count = int(rng.choice([2, 3, 4, 5])) * (2 if choice == 0 else 1)
    used = np.array(colours[: int(rng.choice([2, 3]))], np.uint8)
    return used[(line * count * len(used)).astype(int) % len(used)]


def checks(rng: np.random.Generator, colours: list[Colour], *, count: int | None = None) -> np.ndarray:
    """Chess board of two colours, or of four."""
    count = 2 * int(rng.choice([2, 3, 4])) if count is None else count
    across, down = np.meshgrid(*[np.arange(SIZE_PX) * count // SIZE_PX] * 2)
    if rng.random() < 0.3 and len(colours) >= 4:
        return np.array(colours[:4], np.uint8)[(across % 2) + 2 * (down % 2)]
    return np.array(colours[:2], np.uint8)[(across + down) % 2]


def dots(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Dots on a staggered grid."""
    image = _canvas(colours[0])
    count = int(rng.choice([3, 4, 6]))
    step = SIZE_PX / count
    radius = int(step * rng.uniform(0.22, 0.36))
    for row in range(-1, count * 2 + 1):
        for column in range(-1, count + 1):
            x, y = (column + 0.5 * (row % 2)) * step, row * step / 2 * 1.0
            colour = colours[1 + (row + 1) // 2 % (2 if len(colours) > 2 else 1)]
            cv2.circle(image, (int(x), int(y)), radius if row % 2 == 0 else radius * 2 // 3, colour, -1, cv2.LINE_AA)
    return image


def blobs(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Noise cut into patches of up to three colours, like camouflage."""
    noise = smooth_noise(rng, cells=int(rng.choice([3, 5])), octaves=2)
    levels = np.digitize(noise, np.quantile(noise, [0.4, 0.72]))
    return np.array((colours * 3)[:3], np.uint8)[levels]


def gradient(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Smooth run from one colour to the next, top to bottom, with a thin line."""
    image = _mix(colours[0], colours[1], np.linspace(0, 1, SIZE_PX)[:, None].repeat(SIZE_PX, 1))
    row = int(rng.uniform(0.3, 0.7) * SIZE_PX)
    cv2.rectangle(image, (0, row), (SIZE_PX, row + 16), colours[2 % len(colours)], -1)
    return image


def zigzag(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Chevron bands."""
    count = int(rng.choice([2, 3, 4]))
    across, down = np.meshgrid(np.arange(SIZE_PX), np.arange(SIZE_PX))
    wave = np.abs((across * count / SIZE_PX * 2) % 2 - 1)
    used = np.array(colours[:3], np.uint8)
    return used[((down * count / SIZE_PX + wave * 0.8) * 1.5).astype(int) % len(used)]


def speckle(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """One colour with a slight, smooth variation of brightness."""
    noise = smooth_noise(rng, cells=5)
    darker: Colour = tuple(int(c * 0.86) for c in colours[0])  # type: ignore[assignment]
    return _mix(darker, colours[0], noise)


def rings(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Concentric rings about one to three centres."""
    across, down = np.meshgrid(np.arange(SIZE_PX), np.arange(SIZE_PX))
    centres = rng.uniform(0, SIZE_PX, (int(rng.integers(1, 4)), 2))
    nearest = np.min([np.hypot(across - x, down - y) for x, y in centres], axis=0)
    used = np.array(colours[:3], np.uint8)
    return used[(nearest / rng.uniform(16, 30)).astype(int) % len(used)]


def plaid(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Woven bands of different widths, mixed where they cross."""
    bands = []
    for _ in range(2):
        edges = np.sort(rng.integers(0, SIZE_PX, 5))
        bands.append(np.array(colours, np.float32)[np.digitize(np.arange(SIZE_PX), edges) % 4])
    return np.round((bands[0][:, None] + bands[1][None]) / 2).astype(np.uint8)


def triangles(rng: np.random.Generator, colours: list[Colour]) -> np.ndarray:
    """Cells cut along their diagonals, each half in a colour of its own."""
    count = int(rng.choice([3, 4, 5]))
    across, down = np.meshgrid(*[np.arange(SIZE_PX) * count / SIZE_PX] * 2)
    upper = (across % 1) > (down % 1)
    table = rng.integers(0, 4, (count, count, 2))
    return np.array(colours[:4], np.uint8)[table[down.astype(int), across.astype(int), upper.astype(int)]]


@dataclass(frozen=True)
class Style:
    """What prints are made of: pattern families, the syllables of words, and an OpenCV font."""

    patterns: tuple[Callable[[np.random.Generator, list[Colour]], np.ndarray], ...]
    syllables: tuple[str, ...]
    font: int


HOME = Style((stripes, checks, dots, blobs, gradient, zigzag), SYLLABLES, cv2.FONT_HERSHEY_DUPLEX)
# For held-out objects: words that no training object bears; patterns that none bears are a style of their own.
FOREIGN_WORDS = replace(HOME, syllables=FOREIGN_SYLLABLES, font=cv2.FONT_HERSHEY_TRIPLEX)
FOREIGN = replace(FOREIGN_WORDS, patterns=(rings, plaid, triangles))


def label(rng: np.random.Generator, colours: list[Colour], *, repeat: int = 1, style: Style = HOME) -> np.ndarray:
    """Printed label: ground, band, word and mark; `repeat` sets it side by side, for a wrap round a can."""
    image = _canvas(colours[0])
    layout = rng.integers(3)
    if layout == 0:
        cv2.rectangle(image, (0, 150), (SIZE_PX, 230), colours[1], -1)
        put_mark(image, rng, (0.3, 0.5), 0.2, [colours[2], colours[1]])
        put_word(image, word(rng, style.syllables), (0.6, 0.08, 0.88, 0.92), colours[4], style.font)
    elif layout == 1:
        cv2.rectangle(image, (0, 0), (SIZE_PX, 40), colours[1], -1)
        cv2.rectangle(image, (0, 216), (SIZE_PX, SIZE_PX), colours[2], -1)
        put_word(
            image,
            word(rng, style.syllables),
            (0.3, 0.06, 0.7, 0.94),
            colours[5] if sum(colours[0]) > 380 else colours[4],
            style.font,
        )
    else:
        cv2.circle(image, (128, 128), 104, colours[4], -1, cv2.LINE_AA)
        cv2.circle(image, (128, 128), 104, colours[1], 12, cv2.LINE_AA)
        put_word(image, word(rng, style.syllables), (0.34, 0.14, 0.6, 0.86), colours[5], style.font)
        put_mark(image, rng, (0.74, 0.5), 0.1, [colours[2], colours[0]])
    if repeat > 1:
        narrow = cv2.resize(image, (SIZE_PX * 2 // repeat, SIZE_PX), interpolation=cv2.INTER_AREA)
        image = np.tile(narrow, (1, repeat, 1))
    return image


def pattern(rng: np.random.Generator, colours: list[Colour], style: Style = HOME) -> np.ndarray:
    """One of the style's patterns in a random order of the first four colours and the light neutral."""
    chosen = [colours[i] for i in rng.permutation(5)]
    return style.patterns[int(rng.integers(len(style.patterns)))](rng, chosen)


def box_atlas(rng: np.random.Generator, colours: list[Colour], style: Style = HOME) -> np.ndarray:
    """3 x 2 cells for `rounded_box(atlas=True)`: label in front, its variant behind, patterns on the other faces."""
    other = [colours[0], *colours[2:4], colours[1], *colours[4:]]
    front, back = label(rng, colours, style=style), label(rng, other, style=style)
    side, top = pattern(rng, colours, style), speckle(rng, [colours[1]])
    put_mark(top, rng, (0.5, 0.5), 0.3, [colours[2], colours[4]])
    rows = [np.concatenate([front, side, back], 1), np.concatenate([side[:, ::-1], top, speckle(rng, [colours[3]])], 1)]
    return np.concatenate(rows, 0)


def surface(rng: np.random.Generator) -> np.ndarray:
    """Texture of a floor or wall that tiles: plaster, wood, tiles, bricks, marble, cloth, large checks or patches."""
    colours = muted_palette(rng)
    kind = int(rng.integers(8))
    across, down = np.meshgrid(np.arange(SIZE_PX), np.arange(SIZE_PX))
    noise = smooth_noise(rng, cells=4, octaves=4)
    image = _mix(colours[0], colours[1], noise)
    if kind == 1:
        rings = (0.5 + 0.5 * np.sin(2 * np.pi * (4 * down / SIZE_PX + 1.2 * noise))) * 0.7
        image = _mix(colours[0], colours[1], rings)
        image[np.arange(0, SIZE_PX, 64)] = np.asarray(colours[1]) // 2
    elif kind in (2, 3):
        step_y, step_x = (64, 64) if kind == 2 else (32, 64)
        shifted = across + (down // step_y % 2) * (step_x // 2 if kind == 3 else 0)
        joint = (down % step_y < 4) | (shifted % step_x < 4)
        image[joint] = colours[2]
    elif kind == 4:
        image = _mix(colours[0], colours[1], 1 - np.abs(np.sin(np.pi * (2 * across / SIZE_PX + 2.5 * noise))) ** 0.4)
    elif kind == 5:
        weave = (across // 4 + down // 4) % 2
        image = _mix(colours[0], colours[1], 0.35 * weave + 0.5 * noise)
    elif kind == 6:
        image = _mix(colours[0], colours[1], ((across // 64 + down // 64) % 2) * 0.9 + 0.1 * noise)
    elif kind == 7:
        image = _mix(colours[2], colours[1], (noise > 0.5) * 0.8 + 0.2 * noise)
    return image
