"""Pictures of Mitsuba scenes: whole stages, objects alone, and exact masks. Radiance is linear, float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mitsuba as mi
import numpy as np

from demo.denoise import denoise
from demo.world import Actor, Camera, Light, Pose, Stage, build_light

Cast = list[tuple[Actor, Pose]]


def _sensor(camera: Camera, size_px: int, *, pixel_format: str, rfilter: str, sampler: dict) -> dict[str, Any]:
    look = mi.ScalarTransform4f().look_at(origin=camera.position().tolist(), target=list(camera.target), up=[0, 0, 1])
    film = {
        "type": "hdrfilm",
        "width": size_px,
        "height": size_px,
        "pixel_format": pixel_format,
        "rfilter": {"type": rfilter},
    }
    return {"type": "perspective", "fov": camera.fov_deg, "to_world": look, "film": film, "sampler": sampler}


def render_image(stage: Stage, cast: Cast, camera: Camera, *, size_px: int, num_samples: int, seed: int) -> np.ndarray:
    """Linear float32 picture (size, size, 3) of the stage with the cast on it, each pixel the mean over its square."""
    num_passes = -(-num_samples // 64)  # bounds the memory of the vectorised variants
    sensor = _sensor(
        camera,
        size_px,
        pixel_format="rgb",
        rfilter="box",
        sampler={"type": "independent", "sample_count": num_samples // num_passes},
    )
    scene: dict[str, Any] = {"type": "scene", "integrator": {"type": "path", "max_depth": 3}, "sensor": sensor}
    scene |= stage.fixed
    for index, (actor, pose) in enumerate(cast):
        scene |= actor.shapes(pose, f"actor{index}_")
    loaded = mi.load_dict(scene)
    passes = [np.array(mi.render(loaded, seed=seed * 64 + index), np.float32) for index in range(num_passes)]
    return np.mean(passes, axis=0)


def render_frame(stage: Stage, cast: Cast, camera: Camera, *, size_px: int, num_samples: int, seed: int) -> np.ndarray:
    """Linear picture like `render_image`, from few samples, smoothed with albedo and normals as guides."""
    sampler = {"type": "independent", "sample_count": num_samples}
    sensor = _sensor(camera, size_px, pixel_format="rgb", rfilter="gaussian", sampler=sampler)
    return denoise(*_render_guided(stage, cast, sensor, num_samples=num_samples, seed=seed))


def render_frames(
    stage: Stage, cast: Cast, cameras: Sequence[Camera], *, size_px: int, num_samples: int, seed: int
) -> list[np.ndarray]:
    """One `render_frame` per camera, in one launch."""
    sensor = _build_row(cameras, size_px, pixel_format="rgb", rfilter="gaussian", num_samples=num_samples)
    pictures, guides = _render_guided(stage, cast, sensor, num_samples=num_samples, seed=seed)
    pairs = zip(np.split(pictures, len(cameras), axis=1), np.split(guides, len(cameras), axis=1), strict=True)
    return [denoise(picture, guide) for picture, guide in pairs]


def _load_opaque(description: dict) -> Any:
    """The scene, its numbers kept out of the compiled kernels: LLVM would compile anew for every light or material."""
    scene = mi.load_dict(description)
    if not mi.variant().startswith("scalar"):
        import drjit

        params = mi.traverse(scene)
        for key, value in params:
            drjit.make_opaque(value)
            params[key] = value
        params.update()
    return scene


def _build_row(cameras: Sequence[Camera], size_px: int, *, pixel_format: str, rfilter: str, num_samples: int) -> dict:
    """A sensor whose picture is the cameras' pictures side by side."""
    sampler = {"type": "independent", "sample_count": num_samples}
    parts = {
        f"view{i:02d}": _sensor(camera, size_px, pixel_format=pixel_format, rfilter=rfilter, sampler=sampler)
        for i, camera in enumerate(cameras)
    }
    film = parts["view00"]["film"] | {"width": size_px * len(cameras)}
    return {"type": "batch", "film": film, "sampler": sampler} | parts


def _render_guided(
    stage: Stage, cast: Cast, sensor: dict, *, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Linear picture, and the guides of its smoothing: albedo and normals, in the filter's units."""
    description: dict[str, Any] = {"type": "scene", "sensor": sensor} | stage.fixed
    for index, (actor, pose) in enumerate(cast):
        description |= actor.shapes(pose, f"actor{index}_")
    scene = _load_opaque(description)
    path = mi.load_dict({"type": "path", "max_depth": 3})
    guides = mi.load_dict({"type": "aov", "aovs": "a:albedo,n:sh_normal"})
    picture = np.array(mi.render(scene, integrator=path, spp=num_samples, seed=seed), np.float32)
    guide = np.array(mi.render(scene, integrator=guides, spp=2, seed=seed), np.float32)
    return picture, guide * np.array([12, 12, 12, 3, 3, 3], np.float32)


def render_cutouts(
    actor: Actor, pose: Pose, light: Light, cameras: Sequence[Camera], *, size_px: int, num_samples: int, seed: int
) -> list[np.ndarray]:
    """One `render_cutout` per camera, of the same object under the same light: one launch for all of them."""
    sensor = _build_row(cameras, size_px, pixel_format="rgba", rfilter="box", num_samples=num_samples)
    return np.split(_render_alone(actor, pose, light, sensor, seed=seed, max_depth=2), len(cameras), axis=1)


def render_cutout(
    actor: Actor, pose: Pose, light: Light, camera: Camera, *, size_px: int, num_samples: int, seed: int
) -> np.ndarray:
    """Linear float32 picture (size, size, 4) of the object alone, colours not multiplied by the alpha 0..1."""
    sensor = _sensor(
        camera,
        size_px,
        pixel_format="rgba",
        rfilter="box",
        sampler={"type": "independent", "sample_count": num_samples},
    )
    return _render_alone(actor, pose, light, sensor, seed=seed, max_depth=4)


def _render_alone(actor: Actor, pose: Pose, light: Light, sensor: dict, *, seed: int, max_depth: int) -> np.ndarray:
    tint = [light.ambient * c for c in (2 - light.colour[0], 1.0, 2 - light.colour[2])]
    scene: dict[str, Any] = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": max_depth, "hide_emitters": True},
        "sensor": sensor,
        "ambient": {"type": "constant", "radiance": {"type": "rgb", "value": tint}},
        "light": build_light(light),
    }
    scene |= actor.shapes(pose, "actor0_")
    picture = np.array(mi.render(_load_opaque(scene), seed=seed), np.float32)
    picture[..., 3] = np.clip(picture[..., 3], 0, 1)
    picture[..., :3] /= np.maximum(picture[..., 3:], 1e-4)
    return picture


def render_mask(cast: Cast, camera: Camera, *, size_px: int) -> np.ndarray:
    """Instance numbers (size, size) uint8, exact: 0 nothing, k the k-th of the cast, seen at the pixel's centre."""
    sampler = {"type": "stratified", "jitter": False, "sample_count": 1}
    sensor = _sensor(camera, size_px, pixel_format="luminance", rfilter="box", sampler=sampler)
    scene: dict[str, Any] = {"type": "scene", "integrator": {"type": "aov", "aovs": "i:shape_index"}, "sensor": sensor}
    owners = []
    for index, (actor, pose) in enumerate(cast):
        shapes = actor.shapes(pose, f"actor{index}_")
        owners += [index + 1] * len(shapes)
        scene |= shapes
    loaded = mi.load_dict(scene)
    drawn = np.array(mi.render(loaded, spp=1))[..., 0]
    assert np.array_equal(drawn, np.round(drawn)), "a pixel of the shape index is a mixture"
    table = np.zeros(int(drawn.max()) + 1, np.uint8)
    for number, owner in zip(_shape_numbers(loaded), owners, strict=True):
        if number < len(table):
            table[number] = owner
    return table[drawn.astype(int)]


def _shape_numbers(scene: Any) -> list[int]:
    """What the shape-index AOV writes for each shape: its place from 1, in vectorised variants its registry number."""
    if mi.variant().startswith("scalar"):
        return list(range(1, len(scene.shapes()) + 1))
    import drjit

    return [int(drjit.reinterpret_array(mi.UInt32, mi.ShapePtr(shape))[0]) for shape in scene.shapes()]
