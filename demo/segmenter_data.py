"""Pictures with exact masks for `demo/train_segmenter.py`: rendered scenes, and objects pasted over backgrounds.

A folder of training data holds `scenes/`, see `load_scenes`; objects are those of a rendered world. Backgrounds are the
demo's procedural surfaces and the pictures that come inside scikit-image's wheel. Everything follows from seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from demo import textures as tx
from demo.world_shards import read_objects
from imprint.core.errors import InputError
from imprint.core.pixels import decode_image, encode_image, load_image

SIZE_PX = 128
NUM_SURFACES = 500
FLAT_SHARE = 0.01  # of the training pictures; half of them black, as a video's are that fades
SCENE_SHARE = 0.6  # of the others; the rest is pasted
WORLD_VIEWS = ("00.object.webp", "04.object.webp", "08.object.webp")  # of an object's tar; three lights
WORLD_SCENES = ("12.scene.jpg", "13.scene.jpg")
WORLD = {*WORLD_VIEWS, *WORLD_SCENES, "12.mask.png", "13.mask.png"}
# Inside scikit-image's wheel: no download.
PHOTOS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("moon", "page", "retina", "rocket", "text"),
)


@dataclass(frozen=True)
class Scenes:
    """images: RGB uint8 [n, 128, 128, 3]; masks: uint8 [n, 128, 128], 0 or 255."""

    images: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Pool:
    """What samples are drawn from. objects: RGBA uint8 [h, w, 4] each; backgrounds: RGB uint8 [h, w, 3] each."""

    scenes: Scenes
    objects: list[np.ndarray]
    backgrounds: list[np.ndarray]


def draw_sample(pool: Pool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One training picture, RGB uint8 [128, 128, 3], and its foreground as opacity uint8 [128, 128]."""
    if rng.random() < FLAT_SHARE:
        colour = rng.integers(256, size=3) * rng.integers(2)
        shape = (SIZE_PX, SIZE_PX)
        return np.full((*shape, 3), colour, np.uint8), np.zeros(shape, np.uint8)
    if len(pool.scenes.images) and rng.random() < SCENE_SHARE:
        image, mask = _draw_scene(pool.scenes, rng)
        image, mask = _warp_scene(image, mask, rng)
    else:
        image, mask = _paste_objects(pool, rng)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return degrade(np.ascontiguousarray(image), rng), np.ascontiguousarray(mask)


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other light, blur, noise and compression; each now and then. RGB uint8 in and out."""
    picture = image.astype(np.float32) / 255.0
    if rng.random() < 0.7:
        picture = _relight(picture, rng)
    if rng.random() < 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.4))
    if rng.random() < 0.4:
        picture = picture + rng.normal(0, rng.uniform(0.005, 0.05), picture.shape).astype(np.float32)
    picture = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.5:
        picture = decode_image(encode_image(picture, ".jpg", quality=int(rng.integers(20, 95))), "own JPEG")
    return picture


def load_scenes(folder: Path) -> Scenes:
    """Rendered scenes by name: `<seed>-<number>/image.png` (RGB) and `.../mask.png` (grey, 0 is background)."""
    places = sorted(p.parent for p in folder.glob("*/image.png"))
    if not places:
        raise InputError(
            f"there are no scenes in {folder}; render them with python -m demo.render scenes --out {folder}"
        )
    images = [fit_size(load_image(place / "image.png")) for place in places]
    masks = [fit_size((load_image(place / "mask.png")[..., 0] > 0) * np.uint8(255)) for place in places]
    return Scenes(np.stack(images), np.stack(masks))


def load_world(folder: Path) -> tuple[Scenes, list[np.ndarray]]:
    """The scenes of a rendered world (`demo.training_world`), and views of each object alone, RGBA."""
    images, masks, views = [], [], list[np.ndarray]()
    for thing in read_objects(folder):
        members = {name: decode_image(thing.members[name], f"{folder}/{thing.seed}.tar:{name}") for name in WORLD}
        views += _cut_views(members[name] for name in WORLD_VIEWS)
        images += [members[name] for name in WORLD_SCENES]
        masks += [members[name.replace("scene.jpg", "mask.png")][..., 0] for name in WORLD_SCENES]
    if not images:
        raise InputError(f"there are no objects in {folder}; render them with python -m demo.render world")
    return Scenes(np.stack(images), np.stack(masks)), views


def join_scenes(*parts: Scenes) -> Scenes:
    """All pictures of several sets."""
    return Scenes(np.concatenate([part.images for part in parts]), np.concatenate([part.masks for part in parts]))


def _cut_views(pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Cut to their opaque box; the invisible ones left out."""
    views = []
    for rgba in pictures:
        x, y, width, height = cv2.boundingRect((rgba[..., 3] > 127).astype(np.uint8))
        if min(width, height) >= 8:
            views.append(np.ascontiguousarray(rgba[y : y + height, x : x + width]))
    return views


def build_backgrounds(seed: int) -> list[np.ndarray]:
    """Procedural surfaces, plain patterns and scikit-image's photographs."""
    import skimage.data

    rng = np.random.default_rng([seed, 1])
    surfaces = [tx.surface(rng) for _ in range(NUM_SURFACES)]
    patterns = [tx.pattern(rng, [*tx.muted_palette(rng), *tx.muted_palette(rng)]) for _ in range(NUM_SURFACES // 5)]
    photos = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOS]
    photos = [np.dstack([p] * 3) if p.ndim == 2 else p[..., :3] for p in photos]
    return surfaces + patterns + photos * 12


def fit_size(image: np.ndarray) -> np.ndarray:
    """A picture at the size of the training pictures."""
    if image.shape[:2] == (SIZE_PX, SIZE_PX):
        return image
    return cv2.resize(image, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)


def _draw_scene(scenes: Scenes, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    index = int(rng.integers(len(scenes.images)))
    return scenes.images[index], scenes.masks[index]


def _warp_scene(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Zoom, squeeze, tilt and shift; what lies outside is mirrored in."""
    if rng.random() < 0.3:
        return image, mask
    matrix = sample_matrix(rng, zoom=rng.uniform(0.75, 1.5), tilt_deg=rng.normal(0, 6))
    size = (SIZE_PX, SIZE_PX)
    border = cv2.BORDER_REFLECT_101
    warped = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return warped, cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)


def sample_matrix(rng: np.random.Generator, *, zoom: float, tilt_deg: float) -> np.ndarray:
    """2 x 3 matrix that zooms about the picture's centre, with a squeeze and a shift."""
    squeeze = np.exp(rng.normal(0, 0.12))
    centre = SIZE_PX / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), tilt_deg, zoom)
    matrix[0] *= squeeze
    matrix[0, 2] += centre * (1 - squeeze)
    matrix[:, 2] += rng.normal(0, 0.08, 2) * SIZE_PX
    return matrix


def _relight(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, gain per channel, contrast, and a slope of light across the picture."""
    picture = np.power(picture, np.exp(rng.normal(0, 0.25))) * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    picture = (picture - 0.5) * rng.uniform(0.7, 1.25) + 0.5 + rng.uniform(-0.1, 0.1)
    slope_y, slope_x = rng.normal(0, 0.15, 2)
    ramp = np.linspace(-1, 1, SIZE_PX, dtype=np.float32)
    light = 1 + slope_y * ramp[:, None] + slope_x * ramp[None, :]
    return np.clip(picture * light[..., None], 0, 1).astype(np.float32)


def _paste_objects(pool: Pool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """None to three objects with shadows over a background, or over a scene."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.08, 0.6, 0.2, 0.12]))
    if len(pool.scenes.images) and rng.random() < 0.2:
        image, mask = _draw_scene(pool.scenes, rng)
    else:
        image, mask = draw_background(pool.backgrounds, rng), np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    for _ in range(count):
        rgba = draw_object(pool, rng)
        longest_px = SIZE_PX * (rng.uniform(0.3, 0.95) if count == 1 else rng.uniform(0.2, 0.55))
        image, mask = paste(image, mask, place(rgba, longest_px, rng), rng)
    return image, mask


def draw_background(backgrounds: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A piece of one background, or of two as wall and floor."""
    wall = _draw_piece(backgrounds, rng)
    if rng.random() < 0.5:
        return wall
    floor = _lay_down(_draw_piece(backgrounds, rng), rng)
    edge = SIZE_PX * rng.uniform(0.15, 0.7) + np.linspace(-1, 1, SIZE_PX) * rng.normal(0, 8)
    share = np.clip(np.arange(SIZE_PX)[:, None] - edge[None, :], 0, 1)[..., None]
    return np.rint(wall * (1 - share) + floor * share).astype(np.uint8)


def _draw_piece(backgrounds: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    whole = backgrounds[int(rng.integers(len(backgrounds)))]
    height, width = whole.shape[:2]
    share = (0.3, 1.0) if height == tx.SIZE_PX else (0.1, 0.4)  # of photographs no whole things
    crop_h, crop_w = (max(int(side * rng.uniform(*share)), 16) for side in (height, width))
    y, x = int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1))
    return cv2.resize(whole[y : y + crop_h, x : x + crop_w], (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)


def _lay_down(piece: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The piece repeated on a floor that runs away from the camera."""
    tiled = np.tile(piece, (3, 3, 1))
    side, narrow = 3 * SIZE_PX, SIZE_PX * rng.uniform(0.0, 1.0)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(0, 360), rng.uniform(0.5, 1.2))
    turned = cv2.warpAffine(tiled, turn, (side, side), borderMode=cv2.BORDER_WRAP)
    corners = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    seen = np.array([[-narrow, 0], [SIZE_PX + narrow, 0], [3 * SIZE_PX, SIZE_PX], [-2 * SIZE_PX, SIZE_PX]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, seen)
    return cv2.warpPerspective(turned, matrix, (SIZE_PX, SIZE_PX), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def draw_object(pool: Pool, rng: np.random.Generator) -> np.ndarray:
    """A rendered view, or now and then a random shape with a background's texture."""
    if pool.objects and rng.random() < 0.85:
        return pool.objects[int(rng.integers(len(pool.objects)))]
    height, width = (SIZE_PX * rng.uniform(0.5, 1.0, 2)).astype(int)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    radii = rng.uniform(0.5, 1.0, len(angles))
    points = np.stack([(1 + np.cos(angles) * radii) * width / 2, (1 + np.sin(angles) * radii) * height / 2], 1)
    alpha = cv2.fillPoly(np.zeros((height, width), np.uint8), [points.astype(np.int32)], 255)
    if rng.random() < 0.6:
        smooth = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(3, 9)).astype(np.float32)
        alpha = (np.clip((smooth - 110) / 35, 0, 1) * 255).astype(np.uint8)
    texture = cv2.resize(_draw_piece(pool.backgrounds, rng), (width, height)).astype(np.float32)
    texture = texture * rng.uniform(0.3, 1.3, 3) * np.linspace(1, rng.uniform(0.3, 1), width)[None, :, None]
    return np.dstack([np.clip(texture, 0, 255).astype(np.uint8), alpha])


def place(
    rgba: np.ndarray, longest_px: float, rng: np.random.Generator, *, middle_xy: np.ndarray | None = None
) -> np.ndarray:
    """The object on a transparent canvas of the picture's size: float32 [128, 128, 4], colours times opacity."""
    height, width = rgba.shape[:2]
    scale = longest_px / max(height, width)
    tilt_deg = rng.uniform(-180, 180) if rng.random() < 0.1 else rng.normal(0, 8)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), tilt_deg, scale)
    drawn_xy = SIZE_PX * rng.uniform(0.2, 0.8, 2)
    matrix[:, 2] += (drawn_xy if middle_xy is None else middle_xy) - (width / 2, height / 2)
    premultiplied = rgba.astype(np.float32) / 255.0
    premultiplied[..., :3] *= premultiplied[..., 3:] * rng.uniform(0.7, 1.15)
    if scale < 0.7:  # a large picture made small: average first, or the edges alias
        premultiplied = cv2.GaussianBlur(premultiplied, (0, 0), 0.35 / scale)
    return cv2.warpAffine(premultiplied, matrix, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR)


def paste(
    image: np.ndarray, mask: np.ndarray, layer: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and what is covered of it, after a layer of `place` and its shadow."""
    alpha = layer[..., 3:]
    below = image.astype(np.float32) / 255.0
    if rng.random() < 0.75:
        below = below * _cast_shadow(alpha[..., 0], rng)
    mixed = np.clip(below * (1 - alpha) + layer[..., :3], 0, 1)
    covered = np.maximum(mask, np.rint(alpha[..., 0] * 255).astype(np.uint8))
    return np.rint(mixed * 255).astype(np.uint8), covered


def _cast_shadow(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of light left [128, 128, 1]: the object's shape, flattened, sheared and blurred, about its foot."""
    rows = np.flatnonzero(alpha.max(1) > 0.5)
    foot_px = float(rows[-1]) if len(rows) else SIZE_PX / 2
    flat, shear = rng.uniform(0.1, 0.6), rng.normal(0, 0.8)
    matrix = np.array([[1, shear, -shear * foot_px], [0, flat, foot_px * (1 - flat)]], np.float32)
    shadow = cv2.warpAffine(alpha, matrix, (SIZE_PX, SIZE_PX))
    return 1 - rng.uniform(0.2, 0.8) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.8, 7))[..., None]
