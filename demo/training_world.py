"""The rendered world that the base model learns from: many objects, each seen alone and in scenes. Not shipped.

Per object: NUM_CUTOUTS views on nothing, all round, under three lights in turn; and NUM_STAGES scenes, each seen by
CAMERAS_PER_STAGE cameras with the object and without it. One tar per object; `demo.world_shards` packs them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from demo import textures as tx
from demo.archive import write_tar
from demo.pictures import compute_card_exposure, encode_cutout, to_srgb
from demo.rendering import render_cutouts, render_frames, render_mask
from demo.world import Actor, Camera, Light, Pose, build_stage, fit_camera, sample_light
from imprint.core.pixels import encode_image

NUM_CUTOUTS, NUM_LIGHTS = 12, 3
NUM_STAGES, CAMERAS_PER_STAGE = 4, 1
SIZE_PX = 128
CUTOUT_SAMPLES, SCENE_SAMPLES = 16, 8
WEBP_QUALITY, JPEG_QUALITY = 85, 90
ROUGHNESS = 0.22
PHOTO_SHARE = 0.5  # of the floors and walls
SOFT_SHARE = 0.5  # of the scenes: under a large lamp and much light from all sides, as indoors
CUTOUT_CARD, SCENE_CARD = (0.55, 1.0), (0.5, 1.1)  # linear, of a white card in the light: black things stay dark
PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "rocket")


def write_object(seed: int, folder: Path) -> None:
    """`<seed>.tar`: `<k>.object.webp` (RGBA), `<k>.scene.jpg` with `<k>.plate.jpg` (the scene without the object) and
    `<k>.mask.png`, and `views.json`, in `k` order."""
    target = folder / f"{seed}.tar"
    if target.exists():
        return
    actor = Actor(seed, roughness=ROUGHNESS)
    members, views = _render_alone(seed, actor)
    scene_members, scene_views = _render_scenes(seed, actor)
    members |= scene_members
    members["views.json"] = json.dumps({"seed": seed, "views": views + scene_views}).encode()
    write_tar(target, members)


def _render_alone(seed: int, actor: Actor) -> tuple[dict[str, bytes], list[dict]]:
    rng = np.random.default_rng([seed, 11])
    start = rng.uniform(0, 360)
    pose = Pose(tilt_deg=float(rng.uniform(-6, 6)))
    members, views = {}, []
    for group in range(NUM_LIGHTS):
        numbers = range(group, NUM_CUTOUTS, NUM_LIGHTS)
        turns = [float(start + 360 * k / NUM_CUTOUTS + rng.uniform(-10, 10)) for k in numbers]
        cameras = []
        for turn in turns:
            elevation, fov = float(rng.uniform(5, 42)), float(rng.uniform(28, 44))
            camera = Camera((0, 0, 0.9), 7, elevation, fov_deg=fov, azimuth_deg=turn)
            cameras.append(fit_camera(camera, [actor.points(pose)], fill=float(rng.uniform(0.85, 0.93))))
        light = draw_light(rng)
        exposure = compute_card_exposure(light, level=float(rng.uniform(*CUTOUT_CARD)))
        pictures = render_cutouts(
            actor, pose, light, cameras, size_px=SIZE_PX, num_samples=CUTOUT_SAMPLES, seed=seed * 8 + group
        )
        for number, turn, linear in zip(numbers, turns, pictures, strict=True):
            cutout = _smooth(encode_cutout(linear, exposure))
            members[f"{number:02d}.object.webp"] = encode_image(cutout, ".webp", WEBP_QUALITY)
            views.append({"index": number, "kind": "alone", "turn_deg": round(turn % 360, 1)})
    return members, sorted(views, key=lambda view: view["index"])


def _smooth(rgba: np.ndarray) -> np.ndarray:
    """Takes the grain of few samples away, and no edge of more than about 25 of 255."""
    return np.dstack([cv2.bilateralFilter(rgba[..., :3], 5, 25, 1.5), rgba[..., 3]])


def _render_scenes(seed: int, actor: Actor) -> tuple[dict[str, bytes], list[dict]]:
    members, views = {}, []
    for number in range(NUM_STAGES):
        rng = np.random.default_rng([seed, 12, number])
        stage = build_stage(seed * 4 + number, draw_surface=draw_surface, draw_light=draw_light)
        pose = Pose(yaw_deg=float(rng.uniform(0, 360)), heading_deg=0.0)
        cameras = []
        for _ in range(CAMERAS_PER_STAGE):
            azimuth, elevation = float(rng.uniform(-24, 24)), float(rng.uniform(10, 36))
            camera = Camera((0, 0, 0.7), 8, elevation, fov_deg=float(rng.uniform(28, 42)), azimuth_deg=azimuth)
            camera = fit_camera(camera, [actor.points(pose)], fill=float(rng.uniform(0.38, 0.7)))
            cameras.append(_shift_view(camera, rng))
        full, empty = (
            render_frames(stage, cast, cameras, size_px=SIZE_PX, num_samples=SCENE_SAMPLES, seed=seed * 8 + 4 + number)
            for cast in ([(actor, pose)], [])
        )
        exposure = compute_card_exposure(stage.light, level=float(rng.uniform(*SCENE_CARD)))
        for place, (camera, scene, plate) in enumerate(zip(cameras, full, empty, strict=True)):
            index = NUM_CUTOUTS + number * CAMERAS_PER_STAGE + place
            mask = render_mask([(actor, pose)], camera, size_px=SIZE_PX) > 0
            for name, picture in (("scene", scene), ("plate", plate)):
                data = encode_image(to_srgb(picture, exposure), ".jpg", JPEG_QUALITY)
                members[f"{index:02d}.{name}.jpg"] = data
            members[f"{index:02d}.mask.png"] = encode_image(mask, ".png")
            turn = (camera.azimuth_deg + pose.yaw_deg) % 360
            views.append({"index": index, "kind": "scene", "turn_deg": round(turn, 1), "stage": number})
    return members, views


def draw_light(rng: np.random.Generator) -> Light:
    """As in the demo, or soft: a large lamp high at one side, and more light from all around."""
    light = sample_light(rng)
    if rng.random() >= SOFT_SHARE:
        return light
    side = float(rng.choice([-1.0, 1.0]))
    return replace(
        light,
        azimuth_deg=side * float(rng.uniform(35, 85)),
        elevation_deg=float(rng.uniform(50, 72)),
        radius=float(rng.uniform(2.0, 3.2)),
        strength=float(rng.uniform(1.2, 3.0)),
        ambient=float(rng.uniform(0.4, 1.0)),
    )


def _shift_view(camera: Camera, rng: np.random.Generator) -> Camera:
    """The object off the middle, by up to an eighth of the picture."""
    reach = camera.distance * np.tan(np.radians(camera.fov_deg / 2)) * 0.25
    axes = camera.matrix()[:3, :3]
    shift = axes[0] * rng.uniform(-reach, reach) + axes[1] * rng.uniform(-reach, reach)
    x, y, z = (float(value) for value in np.asarray(camera.target) + shift)
    return replace(camera, target=(x, y, z))


def draw_surface(rng: np.random.Generator) -> np.ndarray:
    """A floor or wall: a piece of one of scikit-image's photographs, mirrored, recoloured at random; or a pattern."""
    if rng.random() >= PHOTO_SHARE:
        return tx.surface(rng)
    photo = load_photographs()[int(rng.integers(len(PHOTOGRAPHS)))]
    side = int(rng.uniform(0.35, 0.9) * min(photo.shape[:2]))
    y0, x0 = (int(rng.integers(extent - side + 1)) for extent in photo.shape[:2])
    piece = cv2.resize(photo[y0 : y0 + side, x0 : x0 + side], (tx.SIZE_PX, tx.SIZE_PX), interpolation=cv2.INTER_AREA)
    piece = piece[..., rng.permutation(3)] if rng.random() < 0.6 else piece
    tint = np.clip(piece * rng.uniform(0.7, 1.25, 3), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(tint[:, ::-1] if rng.random() < 0.5 else tint)


@cache
def load_photographs() -> list[np.ndarray]:
    """RGB uint8 photographs that scikit-image carries in its package; all are CC0 or in the public domain."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    pictures = []
    for name in PHOTOGRAPHS:
        path = next(folder.glob(f"{name}.*"))
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        assert picture is not None, f"{path} is no picture"
        pictures.append(picture)
    return pictures
