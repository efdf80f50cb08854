"""The pictures in `inputs/`, with which `imprint composite` is shown: an object with lettering, and where it may go.

Larger than everything else here, since composites are made at the background's own size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from demo.catalogue import EXAMPLE_SEEDS
from demo.pictures import compute_card_exposure, encode_cutout, to_srgb, write_png
from demo.rendering import render_cutout, render_image, render_mask
from demo.training_world import draw_light, draw_surface
from demo.world import Actor, Camera, Pose, build_stage, fit_camera
from imprint.core.masks import compute_mask_levels

OBJECT_PX, BACKGROUND_PX = 640, 896
OBJECT_SAMPLES, BACKGROUND_SAMPLES = 128, 192
SEED, STAGE_SEED = EXAMPLE_SEEDS.start + 17, EXAMPLE_SEEDS.start + 3
TURN_DEG = 24.0  # between the view that is given and the scene's
FILL = 0.42  # of the background's side that the object would take


def write_example(folder: Path, *, stage_seed: int = STAGE_SEED, scale: float = 1.0) -> None:
    """`object.png` (RGBA), `background.png` and `mask.png`, the box in which the object would stand; `scale` makes all
    smaller, for a try."""
    rng = np.random.default_rng([SEED, 14])
    actor = Actor(SEED)
    pose = Pose(yaw_deg=8.0)
    stage = build_stage(stage_seed, high_light=True, draw_surface=draw_surface, draw_light=draw_light)
    camera = fit_camera(Camera((0, 0, 0.7), 8, 17.0, fov_deg=36.0), [actor.points(pose)], fill=FILL)
    camera = replace(camera, target=(camera.target[0] + 0.5, camera.target[1], camera.target[2] + 0.35))
    size_px = round(BACKGROUND_PX * scale)
    plate = render_image(stage, [], camera, size_px=size_px, num_samples=BACKGROUND_SAMPLES, seed=stage_seed)
    mask = render_mask([(actor, pose)], camera, size_px=size_px) > 0
    light, alone = draw_light(rng), Pose(yaw_deg=pose.yaw_deg + TURN_DEG)
    view = fit_camera(Camera((0, 0, 0.9), 7, 22.0, fov_deg=34.0), [actor.points(alone)], fill=0.9)
    object_px = round(OBJECT_PX * scale)
    cutout = render_cutout(actor, alone, light, view, size_px=object_px, num_samples=OBJECT_SAMPLES, seed=SEED)
    picture = encode_cutout(cutout, compute_card_exposure(light, 0.8))
    write_png(folder / "object.png", np.dstack([_smooth(picture[..., :3]), picture[..., 3]]))
    write_png(folder / "background.png", _smooth(to_srgb(plate, compute_card_exposure(stage.light, 0.85))))
    write_png(folder / "mask.png", compute_mask_levels(mask)["box"].astype(np.uint8) * 255)


def _smooth(picture: np.ndarray) -> np.ndarray:
    """Takes the last grain away, and no edge."""
    return cv2.bilateralFilter(picture, 5, 16, 1.5)
