"""The references of a test case: the object alone, from four directions that differ more and more from the truth's.

They share light, exposure, lens and fill, so that what differs between them is the view alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from demo.catalogue import MAX_VIEW_CHANGE_DEG, SIZE_PX
from demo.geometry import compute_angle_deg, compute_view_direction
from demo.pictures import compute_card_exposure, encode_cutout
from demo.rendering import render_cutout
from demo.training_world import CUTOUT_CARD, draw_light
from demo.world import Actor, Camera, Pose, fit_camera
from imprint.core.view_changes import VIEW_CHANGES, get_range_deg, name_reference

NUM_SAMPLES = 128
ELEVATION = (5.0, 42.0)  # degrees, as in the training world
_MAX_DRAWS = 500


@dataclass(frozen=True)
class View:
    """Where the object stands and where the camera."""

    pose: Pose
    camera: Camera

    def centre(self, actor: Actor) -> np.ndarray:
        """Middle of the object's bounding box, in the world."""
        points = actor.points(self.pose, step=1)
        return (points.min(0) + points.max(0)) / 2

    def direction(self, actor: Actor) -> np.ndarray:
        """From the object to the camera, in the object's axes."""
        turn = actor.matrix(self.pose)[:3, :3]
        return compute_view_direction(self.camera.position(), self.centre(actor), turn)

    def record(self, actor: Actor) -> dict[str, Any]:
        """As in `case.json`."""
        centre = [float(value) for value in self.centre(actor)]
        return {"pose": asdict(self.pose), "camera": asdict(self.camera), "centre": centre}


def render_references(seed: int, actor: Actor, truth: View) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """RGBA pictures by file stem, and what goes into the case's record."""
    light = draw_light(np.random.default_rng([seed, 10]))
    rng = np.random.default_rng([seed, 14])
    card = float(rng.uniform(*CUTOUT_CARD))
    fov_deg, fill = float(rng.uniform(28, 44)), float(rng.uniform(0.86, 0.93))
    lens = Camera((0, 0, 0.9), 7, 0, fov_deg=fov_deg)
    pictures, views = {}, {}
    for view_change in VIEW_CHANGES:
        low_deg, high_deg = get_range_deg(view_change)
        ends = {"low_deg": low_deg, "high_deg": min(high_deg, MAX_VIEW_CHANGE_DEG)}
        view, angle_deg = _draw_view(rng, actor, truth, lens=lens, fill=fill, **ends)
        options = {"size_px": SIZE_PX, "num_samples": NUM_SAMPLES, "seed": seed * 4 + len(pictures)}
        linear = render_cutout(actor, view.pose, light, view.camera, **options)
        stem = name_reference(view_change)
        pictures[stem] = encode_cutout(linear, compute_card_exposure(light, card))
        views[stem] = {"view_change_deg": round(angle_deg, 2)} | view.record(actor)
    return pictures, {"reference_light": asdict(light), "reference_card": card, "references": views}


def _draw_view(
    rng: np.random.Generator, actor: Actor, truth: View, *, lens: Camera, fill: float, low_deg: float, high_deg: float
) -> tuple[View, float]:
    """A view whose direction differs from the truth's by an angle that is drawn evenly from the range; that angle."""
    seen = truth.direction(actor)
    height = np.arcsin(seen[2])
    for _ in range(_MAX_DRAWS):
        wanted, elevation = np.radians(rng.uniform(low_deg, high_deg)), np.radians(rng.uniform(*ELEVATION))
        side = rng.choice([-1.0, 1.0])
        # Law of cosines on the sphere: by how much to turn, so that the directions differ by what is wanted.
        cosine = (np.cos(wanted) - np.sin(height) * np.sin(elevation)) / (np.cos(height) * np.cos(elevation))
        if abs(cosine) > 1:
            continue
        turn_deg = side * float(np.degrees(np.arccos(cosine)))
        pose = Pose(yaw_deg=truth.pose.yaw_deg + turn_deg)
        camera = Camera(lens.target, lens.distance, float(np.degrees(elevation)), fov_deg=lens.fov_deg)
        view = View(pose, fit_camera(camera, [actor.points(pose, step=1)], fill=fill))
        angle_deg = compute_angle_deg(seen, view.direction(actor))
        if low_deg <= angle_deg < high_deg:
            return view, angle_deg
    raise RuntimeError(f"no view of {_MAX_DRAWS} differs by {low_deg} to {high_deg} degrees")
