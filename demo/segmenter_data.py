"""Pictures with exact masks for `demo/train_segmenter.py`: rendered scenes, and objects pasted over backgrounds.

A folder of training data holds `objects/*.png` (RGBA views) and `scenes/`, see `load_scenes`; the base model's training
world (`demo/training_world.py`) adds more of both. Backgrounds are the demo's procedural surfaces and the pictures that
come inside scikit-image's wheel. Everything follows from seeds.
"""

from __future__ import annotations

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
SCENE_SHARE = 0.35  # of the training pictures; the others are pasted
WORLD_EVERY = 4  # of the training world's objects, one in so many is used
WORLD_VIEWS = 6  # of each of them
TWIN_SHARE = 0.3  # of the pasted objects, those of which a copy stands in the picture already
CONTACT_PX = 2  # from an object's edge, how far the contact with another one reaches
# Inside scikit-image's wheel: no download.
PHOTOS = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("moon", "page", "retina", "rocket", "text"),
)


@dataclass(frozen=True)
class Scenes:
    """images: RGB uint8 [n, 128, 128, 3]; masks: uint8 [n, 128, 128], 0 or the object's number."""

    images: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Pool:
    """What samples are drawn from. objects: RGBA uint8 [h, w, 4] each; backgrounds: RGB uint8 [h, w, 3] each."""

    scenes: Scenes
    objects: list[np.ndarray]
    backgrounds: list[np.ndarray]


@dataclass(frozen=True)
class Picture:
    """RGB uint8 [128, 128, 3]; opacity of all objects uint8 [128, 128]; ids uint8 [128, 128], 0 or the object's number."""

    image: np.ndarray
    opacity: np.ndarray
    ids: np.ndarray


def draw_sample(pool: Pool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One training picture, RGB uint8 [128, 128, 3], and its targets uint8 [2, 128, 128]: opacity, and contact."""
    if len(pool.scenes.images) and rng.random() < SCENE_SHARE:
        picture = _warp_scene(_draw_scene(pool.scenes, rng), rng)
    else:
        picture = _paste_objects(pool, rng)
    targets = np.stack([picture.opacity, compute_contact(picture.ids) * np.uint8(255)])
    image = picture.image
    if rng.random() < 0.5:
        image, targets = image[:, ::-1], targets[..., ::-1]
    return degrade(np.ascontiguousarray(image), rng), np.ascontiguousarray(targets)


def compute_contact(ids: np.ndarray) -> np.ndarray:
    """Pixels of an object within `CONTACT_PX` of another one: bool [h, w] of object numbers [h, w], 0 is none."""
    kernel = np.ones((2 * CONTACT_PX + 1, 2 * CONTACT_PX + 1), np.uint8)
    highest = cv2.dilate(ids, kernel)
    lowest = cv2.erode(np.where(ids > 0, ids, 255).astype(np.uint8), kernel)
    return (ids > 0) & (highest != lowest)


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
    images = [_fit(load_image(place / "image.png")) for place in places]
    masks = [_fit(load_image(place / "mask.png")[..., 0], cv2.INTER_NEAREST) for place in places]
    return Scenes(np.stack(images), np.stack(masks))


def load_objects(folder: Path) -> list[np.ndarray]:
    """RGBA views cut to their opaque box; the invisible ones left out."""
    views = [_cut_out(load_image(path)) for path in sorted(folder.glob("*.png"))]
    return [view for view in views if view is not None]


def load_world(folder: Path) -> tuple[list[np.ndarray], Scenes]:
    """Views and scenes of a share of the training world's objects, as `load_objects` and `load_scenes` give them."""
    views, images, masks = [], [], []
    for number, thing in enumerate(read_objects(folder)):
        if number % WORLD_EVERY:
            continue
        members = thing.members
        views += [decode_image(data, name) for name, data in members.items() if name.endswith(".object.webp")][
            :WORLD_VIEWS
        ]
        for name in sorted(name for name in members if name.endswith(".scene.jpg")):
            images.append(_fit(decode_image(members[name], name)))
            mask = name.replace(".scene.jpg", ".mask.png")
            masks.append(_fit((decode_image(members[mask], mask)[..., 0] > 127).astype(np.uint8), cv2.INTER_NEAREST))
    cut = [_cut_out(view) for view in views]
    return [view for view in cut if view is not None], Scenes(np.stack(images), np.stack(masks))


def _cut_out(rgba: np.ndarray) -> np.ndarray | None:
    x, y, width, height = cv2.boundingRect((rgba[..., 3] > 127).astype(np.uint8))
    return np.ascontiguousarray(rgba[y : y + height, x : x + width]) if min(width, height) >= 8 else None


def build_backgrounds(seed: int) -> list[np.ndarray]:
    """Procedural surfaces, plain patterns and scikit-image's photographs."""
    import skimage.data

    rng = np.random.default_rng([seed, 1])
    surfaces = [tx.surface(rng) for _ in range(NUM_SURFACES)]
    patterns = [tx.pattern(rng, [*tx.muted_palette(rng), *tx.muted_palette(rng)]) for _ in range(NUM_SURFACES // 5)]
    photos = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOS]
    photos = [np.dstack([p] * 3) if p.ndim == 2 else p[..., :3] for p in photos]
    return surfaces + patterns + photos * 12


def _fit(image: np.ndarray, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    if image.shape[:2] == (SIZE_PX, SIZE_PX):
        return image
    return cv2.resize(image, (SIZE_PX, SIZE_PX), interpolation=interpolation)


def _draw_scene(scenes: Scenes, rng: np.random.Generator) -> Picture:
    index = int(rng.integers(len(scenes.images)))
    ids = scenes.masks[index]
    return Picture(scenes.images[index], (ids > 0) * np.uint8(255), ids)


def _warp_scene(picture: Picture, rng: np.random.Generator) -> Picture:
    """Zoom, squeeze, tilt and shift; what lies outside is mirrored in."""
    if rng.random() < 0.3:
        return picture
    matrix = _sample_matrix(rng, zoom=rng.uniform(0.75, 1.5), tilt_deg=rng.normal(0, 6))

    def warp(layer: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        size = (SIZE_PX, SIZE_PX)
        return cv2.warpAffine(layer, matrix, size, flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)

    return Picture(warp(picture.image), warp(picture.opacity), warp(picture.ids, cv2.INTER_NEAREST))


def _sample_matrix(rng: np.random.Generator, *, zoom: float, tilt_deg: float) -> np.ndarray:
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


def _paste_objects(pool: Pool, rng: np.random.Generator) -> Picture:
    """None to four objects with shadows over a background, or over a scene; most of several touch one another."""
    count = int(rng.choice([0, 1, 2, 3, 4], p=[0.06, 0.28, 0.34, 0.22, 0.1]))
    if len(pool.scenes.images) and rng.random() < 0.3:
        picture = _draw_scene(pool.scenes, rng)
    else:
        empty = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
        picture = Picture(_draw_background(pool.backgrounds, rng), empty, empty)
    used: list[np.ndarray] = []
    for _ in range(count):
        twin = bool(used) and rng.random() < TWIN_SHARE
        used.append(used[int(rng.integers(len(used)))] if twin else _draw_object(pool, rng))
        longest_px = SIZE_PX * (rng.uniform(0.3, 0.95) if count == 1 else rng.uniform(0.2, 0.6))
        picture = _paste(picture, _place(used[-1], longest_px, _draw_place(picture.ids, rng), rng), rng)
    return picture


def _draw_place(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x, y of the next object's middle: anywhere, or beside the middle of one that is there."""
    numbers = np.unique(ids[ids > 0])
    if len(numbers) == 0 or rng.random() < 0.3:
        return SIZE_PX * rng.uniform(0.2, 0.8, 2)
    rows, columns = np.nonzero(ids == rng.choice(numbers))
    reach_px = 1.1 * np.sqrt(len(rows))
    return np.array([columns.mean(), rows.mean()]) + rng.uniform(-reach_px, reach_px, 2) * (1.0, 0.5)


def _draw_background(backgrounds: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
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


def _draw_object(pool: Pool, rng: np.random.Generator) -> np.ndarray:
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


def _place(rgba: np.ndarray, longest_px: float, middle_xy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object on a transparent canvas of the picture's size: float32 [128, 128, 4], colours times opacity."""
    height, width = rgba.shape[:2]
    scale = longest_px / max(height, width)
    tilt_deg = rng.uniform(-180, 180) if rng.random() < 0.1 else rng.normal(0, 8)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), tilt_deg, scale)
    matrix[:, 2] += middle_xy - (width / 2, height / 2)
    premultiplied = rgba.astype(np.float32) / 255.0
    premultiplied[..., :3] *= premultiplied[..., 3:] * rng.uniform(0.7, 1.15)
    if scale < 0.7:  # a large picture made small: average first, or the edges alias
        premultiplied = cv2.GaussianBlur(premultiplied, (0, 0), 0.35 / scale)
    return cv2.warpAffine(premultiplied, matrix, (SIZE_PX, SIZE_PX), flags=cv2.INTER_LINEAR)


def _paste(picture: Picture, layer: np.ndarray, rng: np.random.Generator) -> Picture:
    alpha = layer[..., 3:]
    below = picture.image.astype(np.float32) / 255.0
    if rng.random() < 0.75:
        below = below * _cast_shadow(alpha[..., 0], rng)
    mixed = np.clip(below * (1 - alpha) + layer[..., :3], 0, 1)
    covered = np.maximum(picture.opacity, np.rint(alpha[..., 0] * 255).astype(np.uint8))
    ids = np.where(alpha[..., 0] > 0.5, picture.ids.max() + 1, picture.ids).astype(np.uint8)
    return Picture(np.rint(mixed * 255).astype(np.uint8), covered, ids)


def _cast_shadow(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of light left [128, 128, 1]: the object's shape, flattened, sheared and blurred, about its foot."""
    rows = np.flatnonzero(alpha.max(1) > 0.5)
    foot_px = float(rows[-1]) if len(rows) else SIZE_PX / 2
    flat, shear = rng.uniform(0.1, 0.6), rng.normal(0, 0.8)
    matrix = np.array([[1, shear, -shear * foot_px], [0, flat, foot_px * (1 - flat)]], np.float32)
    shadow = cv2.warpAffine(alpha, matrix, (SIZE_PX, SIZE_PX))
    return 1 - rng.uniform(0.2, 0.8) * cv2.GaussianBlur(shadow, (0, 0), rng.uniform(0.8, 7))[..., None]
