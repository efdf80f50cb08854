"""Scenes for Mitsuba 3: objects on a floor before a background, under a light, seen by a camera.

Everything follows from seeds. The camera stands at negative y and looks along positive y; x is to the right, z up,
the floor is z = 0. Radiance is linear; pictures leave as sRGB bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mitsuba as mi
import numpy as np

from demo import textures as tx
from demo.geometry import Mesh, rotation, translation
from demo.objects import MATERIALS, Part, build_object

DrawSurface = Callable[[np.random.Generator], np.ndarray]
PADDED_PARTS = 24
BACKGROUNDS = ("wall", "corner", "sky", "studio")


@dataclass(frozen=True)
class Pose:
    """Where an object stands: turned by `yaw_deg` about z, tilted about x (90 lies), turned by `heading_deg`, moved."""

    x: float = 0.0
    y: float = 0.0
    yaw_deg: float = 0.0
    tilt_deg: float = 0.0
    heading_deg: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Light:
    """Spherical light: azimuth (0 is behind the camera, positive to the right), elevation, distance, radius."""

    azimuth_deg: float
    elevation_deg: float
    distance: float
    radius: float
    colour: tuple[float, float, float]
    strength: float
    ambient: float

    def direction(self) -> np.ndarray:
        """Unit vector from the origin to the light."""
        azimuth, elevation = np.radians(self.azimuth_deg), np.radians(self.elevation_deg)
        flat = np.cos(elevation)
        return np.array([np.sin(azimuth) * flat, -np.cos(azimuth) * flat, np.sin(elevation)])


@dataclass(frozen=True)
class Camera:
    """Looks from `distance` and `elevation_deg` at `target`; vertical and horizontal field of view `fov_deg`."""

    target: tuple[float, float, float]
    distance: float
    elevation_deg: float
    fov_deg: float = 36.0
    azimuth_deg: float = 0.0

    def matrix(self) -> np.ndarray:
        """4 x 4 matrix from the world to camera axes (right, up, away from the camera)."""
        elevation, azimuth = np.radians(self.elevation_deg), np.radians(self.azimuth_deg)
        away = np.array([np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
        right = np.array([np.cos(azimuth), -np.sin(azimuth), 0.0])
        axes = np.stack([right, np.cross(right, away), away])
        matrix = np.eye(4)
        matrix[:3, :3] = axes
        matrix[:3, 3] = -axes @ self.position()
        return matrix

    def position(self) -> np.ndarray:
        """Where the camera stands."""
        elevation, azimuth = np.radians(self.elevation_deg), np.radians(self.azimuth_deg)
        away = np.array([np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)])
        return np.asarray(self.target) - self.distance * away

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) world points to (N, 2) picture coordinates, -1..1 from the left and from the bottom."""
        local = points @ self.matrix()[:3, :3].T + self.matrix()[:3, 3]
        return local[:, :2] / (np.maximum(local[:, 2:], 1e-3) * np.tan(np.radians(self.fov_deg / 2)))


@dataclass
class Stage:
    """What stays the same during a shot: floor, background and light. Holds Mitsuba objects made once."""

    light: Light
    background: str
    fixed: dict[str, Any] = field(default_factory=dict)


class Actor:
    """An object with its textures loaded, ready to be posed in any number of scenes."""

    def __init__(self, seed: int, *, roughness: float | None = None) -> None:
        """With a `roughness`, which stands for each glossy part's own, every object has the same number of parts and
        kinds of material, so that one compiled kernel serves them all; LLVM takes a second for each."""
        self.seed = seed
        self.parts = build_object(seed)
        if roughness is not None:
            self.parts = _pad([replace(part, roughness=roughness) for part in self.parts])
        self.bsdfs = [build_bsdf(part) for part in self.parts]

    def matrix(self, pose: Pose) -> np.ndarray:
        """4 x 4 matrix of the pose; the lowest vertex is put on the floor."""
        turn = rotation("z", pose.heading_deg) @ rotation("x", pose.tilt_deg) @ rotation("z", pose.yaw_deg)
        turn = turn * np.array([pose.scale] * 3 + [1.0])
        low = min(float((part.mesh.vertices @ turn[2, :3]).min()) for part in self.parts)
        return translation(pose.x, pose.y, -low) @ turn

    def points(self, pose: Pose, *, step: int = 3) -> np.ndarray:
        """(N, 3) vertices in the world, for framing: every third by default, which may miss a corner."""
        matrix = self.matrix(pose)
        vertices = np.concatenate([part.mesh.vertices[::step] for part in self.parts])
        return vertices @ matrix[:3, :3].T + matrix[:3, 3]

    def shapes(self, pose: Pose, prefix: str) -> dict[str, Any]:
        """Mitsuba shapes of the posed object, named `prefix` + part number."""
        matrix = self.matrix(pose)
        pairs = zip(self.parts, self.bsdfs, strict=True)
        return {
            f"{prefix}{i:02d}": _mitsuba_mesh(part.mesh.moved(matrix), bsdf) for i, (part, bsdf) in enumerate(pairs)
        }


def _pad(parts: list[Part]) -> list[Part]:
    """As many parts as PADDED_PARTS, and one of each material at least, by specks inside the first part."""
    middle = parts[0].mesh.vertices.mean(0)
    corners = middle + 1e-4 * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    speck = Mesh(corners, np.tile([0.0, 0.0, 1.0], (3, 1)), np.zeros((3, 2)), np.array([[0, 1, 2]]))
    grey = np.full((tx.SIZE_PX, tx.SIZE_PX, 3), 128, np.uint8)
    missing = PADDED_PARTS - len(parts)
    assert missing >= len(MATERIALS), f"an object of {len(parts)} parts: raise PADDED_PARTS"
    kinds = [MATERIALS[i % len(MATERIALS)] for i in range(missing)]
    return parts + [Part(speck, grey, kind, parts[0].roughness) for kind in kinds]


def _bitmap(texture: np.ndarray) -> dict[str, Any]:
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(texture))}


def _build_plane(texture: np.ndarray, to_world: Any, *, repeat: float, turn_deg: float = 0.0) -> Any:
    """A diffuse rectangle, -1..1 in x and y before `to_world`; the texture is repeated and turned by its coordinates.

    A bitmap's own transform would be compiled into the kernel, and LLVM would start anew for every floor.
    """
    corners = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
    uvs = (corners[:, :2] + 1.0) / 2.0 * repeat @ rotation("z", turn_deg)[:2, :2].T
    up = np.tile([0.0, 0.0, 1.0], (4, 1))
    mesh = Mesh(corners, up, uvs, np.array([[0, 1, 2], [0, 2, 3]]))
    bsdf = mi.load_dict({"type": "diffuse", "reflectance": _bitmap(texture)})
    return _mitsuba_mesh(mesh.moved(np.array(to_world.matrix, np.float64)), bsdf)


def build_bsdf(part: Part) -> Any:
    """Two-sided Mitsuba material of a part."""
    colour = _bitmap(part.texture[::-1])  # Mitsuba's v points down the bitmap's rows, ours points up
    inner: dict[str, Any] = {"type": "diffuse", "reflectance": colour}
    if part.material != "diffuse":  # `principled` loads in 1 ms; `roughplastic` tabulates for 35 ms
        metallic = 0.55 if part.material == "metal" else 0.0
        inner = {
            "type": "principled",
            "base_color": colour,
            "roughness": part.roughness**0.5,
            "metallic": metallic,
            "specular": 0.5,
        }
    return mi.load_dict({"type": "twosided", "bsdf": inner})


def _mitsuba_mesh(mesh: Mesh, bsdf: Any) -> Any:
    props = mi.Properties()
    props["mesh_bsdf"] = bsdf
    shape = mi.Mesh(
        "part", len(mesh.vertices), len(mesh.faces), has_vertex_normals=True, has_vertex_texcoords=True, props=props
    )
    params = mi.traverse(shape)
    values = {"vertex_positions": mesh.vertices, "vertex_normals": mesh.normals, "vertex_texcoords": mesh.uvs}
    for name, value in values.items():
        params[name] = type(params[name])(value.astype(np.float32).ravel())
    params["faces"] = type(params["faces"])(mesh.faces.astype(np.uint32).ravel())
    params.update()
    return shape


def sample_light(rng: np.random.Generator) -> Light:
    """A light in front of the scene: from small and hard to large and soft, warm to cool, low to high ambient."""
    warmth = rng.uniform(-0.22, 0.22)
    return Light(
        azimuth_deg=float(rng.uniform(-85, 85)),
        elevation_deg=float(rng.uniform(32, 70)),
        distance=float(rng.uniform(9, 13)),
        radius=float(rng.uniform(0.6, 2.4)),
        colour=(1 + warmth, 1.0, 1 - warmth),
        strength=float(rng.uniform(2.2, 4.2)),
        ambient=float(rng.uniform(0.35, 1.1)),
    )


def _sky(rng: np.random.Generator) -> np.ndarray:
    """Procedural environment (64, 128, 3), linear: a gradient with soft coloured clouds."""
    colours = np.asarray(tx.muted_palette(rng), np.float32) / 255
    height = np.linspace(1, 0, 64, dtype=np.float32)[:, None, None]
    cloud = tx.smooth_noise(rng, cells=4, octaves=3, size=128)[:64, :, None] ** 2
    picture = colours[0] * height + colours[1] * (1 - height)
    return ((picture * (1 - 0.6 * cloud) + 0.6 * cloud * colours[2]) ** 2.2 * 1.3).astype(np.float32)


def build_stage(
    seed: int,
    *,
    room: float = 0.0,
    high_light: bool = False,
    draw_surface: DrawSurface = tx.surface,
    draw_light: Callable[[np.random.Generator], Light] = sample_light,
) -> Stage:
    """Floor, background and light of a seed; walls stand `room` further off than the 3.2 to 6.5 units drawn.

    `high_light` brings the light's elevation from 32..70 to 50..72 degrees, for short shadows; `draw_surface` gives
    the pictures on floor and walls, `draw_light` the light.
    """
    rng = np.random.default_rng([seed, 2])
    light = draw_light(rng)
    if high_light:
        light = replace(light, elevation_deg=50 + (light.elevation_deg - 32) * 22 / 38)
    background = str(rng.choice(BACKGROUNDS, p=[0.4, 0.2, 0.25, 0.15]))
    if background == "corner":  # the side walls would stand between a light from the side and the scene
        light = replace(light, azimuth_deg=light.azimuth_deg * 0.45)
    transform = mi.ScalarTransform4f
    floor_texture = draw_surface(rng)
    wall_texture = floor_texture if background == "studio" else draw_surface(rng)
    repeat, turn_deg = float(rng.uniform(3, 7)), float(rng.uniform(0, 360))
    lie = transform().scale([16, 16, 1])
    fixed: dict[str, Any] = {"floor": _build_plane(floor_texture, lie, repeat=repeat, turn_deg=turn_deg)}
    wall_y = float(rng.uniform(3.2, 6.5)) + room
    wall_repeat = float(rng.uniform(2, 6))
    turn = float(rng.uniform(-22, 22)) if background == "wall" else 0.0
    stand = transform().rotate([0, 0, 1], turn).translate([0, wall_y, 0]).rotate([1, 0, 0], 90).scale([16, 16, 1])
    if background == "corner":
        side = float(rng.choice([-45.0, 45.0])) + float(rng.uniform(-12, 12))
        for name, angle in (("wall_a", side), ("wall_b", side - 90 * np.sign(side))):
            place = (
                transform().rotate([0, 0, 1], angle).translate([0, wall_y, 0]).rotate([1, 0, 0], 90).scale([16, 16, 1])
            )
            fixed[name] = _build_plane(wall_texture, place, repeat=wall_repeat)
    elif background != "sky":
        fixed["wall"] = _build_plane(wall_texture, stand, repeat=wall_repeat)
    if background == "sky":
        tilt = transform().rotate([0, 0, 1], float(rng.uniform(0, 360))).rotate([1, 0, 0], 90)
        bitmap = mi.Bitmap(_sky(rng))
        fixed["ambient"] = {"type": "envmap", "bitmap": bitmap, "to_world": tilt, "scale": light.ambient}
    else:
        tint = [light.ambient * c for c in (2 - light.colour[0], 1.0, 2 - light.colour[2])]
        fixed["ambient"] = {"type": "constant", "radiance": {"type": "rgb", "value": tint}}
    fixed["light"] = build_light(light)
    loaded = {name: mi.load_dict(value) if isinstance(value, dict) else value for name, value in fixed.items()}
    return Stage(light, background, loaded)


def build_light(light: Light) -> dict[str, Any]:
    """Mitsuba description of the light; its irradiance at the origin does not depend on its size."""
    radiance = [light.strength * c * (light.distance / light.radius) ** 2 / np.pi for c in light.colour]
    emitter = {"type": "area", "radiance": {"type": "rgb", "value": radiance}}
    return {
        "type": "sphere",
        "center": (light.direction() * light.distance).tolist(),
        "radius": light.radius,
        "emitter": emitter,
    }


def fit_camera(camera: Camera, groups: list[np.ndarray], *, fill: float) -> Camera:
    """Move the camera so that the points' bounding box is centred and fills `fill` (0..1) of the picture's side."""
    points = np.concatenate(groups)
    for _ in range(12):
        flat = camera.project(points)
        low, high = flat.min(0), flat.max(0)
        shift = (low + high) / 2 * camera.distance * np.tan(np.radians(camera.fov_deg / 2))
        axes = camera.matrix()[:3, :3]
        target = np.asarray(camera.target) + shift[0] * axes[0] + shift[1] * axes[1]
        size = float((high - low).max()) / 2
        camera = replace(camera, target=tuple(map(float, target)), distance=camera.distance * (size / fill) ** 0.8)
    return camera
