"""What happens in a clip: for every frame where each object stands and where the camera is. All from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from demo.catalogue import NUM_FRAMES
from demo.rendering import Cast, render_mask
from demo.world import Actor, Camera, Pose, fit_camera

MIN_COVER, MAX_COVER = 0.125, 0.36

Motion = Callable[[float], Pose]  # time 0..1 within a shot -> pose


@dataclass(frozen=True)
class Shot:
    """Frames `start` to `stop` (half-open) on one stage: per frame the camera and the poses by instance number."""

    start: int
    stop: int
    stage_seed: int
    room: float
    cameras: list[Camera]
    poses: list[dict[int, Pose]]


@dataclass(frozen=True)
class Clip:
    """A planned clip; `object_seeds[k]` is the seed of instance k + 1."""

    name: str
    kind: str
    tags: list[str]
    seed: int
    object_seeds: list[int]
    shots: list[Shot]


def _moving_camera(rng: np.random.Generator, fitted: Camera, centres: np.ndarray, follow: float) -> list[Camera]:
    """The fitted camera, per frame: still, or drifting by a few degrees and following the centres (T, 2) in part."""
    drift = rng.uniform(-9, 9, 2) * [1.0, 0.4] * (rng.random() < 0.6)
    pull = rng.uniform(-0.05, 0.05) * (rng.random() < 0.5)
    middle = (centres.min(0) + centres.max(0)) / 2
    cameras = []
    for step, centre in zip(np.linspace(-0.5, 0.5, len(centres)), centres, strict=True):
        shift = follow * (centre - middle)
        target = (fitted.target[0] + shift[0], fitted.target[1] + shift[1], fitted.target[2])
        cameras.append(
            replace(
                fitted,
                target=target,
                distance=fitted.distance * (1 + pull * step),
                azimuth_deg=float(drift[0] * step),
                elevation_deg=fitted.elevation_deg + float(drift[1] * step),
            )
        )
    return cameras


def _single_motion(rng: np.random.Generator, reach: float) -> Motion:
    """Turn by 150 to 330 degrees on an arc on the floor, upright with a wobble or rolling on the side."""
    start, sweep = rng.uniform(0, 360), rng.choice([-1, 1]) * rng.uniform(150, 330)
    lying = rng.random() < 0.14
    heading = rng.choice([-90, 90]) + rng.uniform(-35, 35)
    wobble, cycles, phase = rng.uniform(0, 9), rng.uniform(0.6, 1.8), rng.uniform(0, 6.3)
    arc, arc_phase = rng.uniform(2.0, 5.5), rng.uniform(0, 6.3)
    size_x, size_y = rng.uniform(0.2, 0.6) * reach, rng.uniform(0.15, 0.5) * reach

    def pose(time: float) -> Pose:
        tilt = wobble * np.sin(2 * np.pi * cycles * time + phase)
        return Pose(
            x=float(size_x * np.sin(arc * time + arc_phase)),
            y=float(size_y * np.cos(arc * time + arc_phase)),
            yaw_deg=float(start + sweep * time),
            tilt_deg=90.0 if lying else float(tilt),
            heading_deg=float(heading) if lying else 0.0,
        )

    return pose


def _covers(actor: Actor, poses: list[Pose], cameras: list[Camera]) -> tuple[float, float]:
    """Smallest and largest share of the picture that the object covers, from every sixth frame at 64 px."""
    pairs = list(zip(poses, cameras, strict=True))[::6]
    shares = [float((render_mask([(actor, pose)], camera, size_px=64) > 0).mean()) for pose, camera in pairs]
    return min(shares), max(shares)


def plan_single(seed: int, name: str, load: Callable[[int], Actor]) -> Clip:
    """One object, turning and moving, in every frame whole and covering MIN_COVER to about MAX_COVER."""
    actor = load(seed)
    fill, reach = float(np.random.default_rng([seed, 4]).uniform(0.72, 0.9)), 1.0
    for _ in range(6):
        rng = np.random.default_rng([seed, 3])
        motion = _single_motion(rng, reach)
        poses = [motion(i / (NUM_FRAMES - 1)) for i in range(NUM_FRAMES)]
        camera = Camera((0, 0, 0.9), 7, float(rng.uniform(12, 36)), fov_deg=float(rng.uniform(28, 44)))
        follow = float(rng.uniform(0.2, 0.9)) * (rng.random() < 0.6)
        centres = np.array([[pose.x, pose.y] for pose in poses])
        middle = (centres.min(0) + centres.max(0)) / 2
        shifts = np.append(follow * (centres - middle), np.zeros((NUM_FRAMES, 1)), axis=1)
        groups = [actor.points(pose) - shift for pose, shift in list(zip(poses, shifts, strict=True))[::4]]
        cameras = _moving_camera(rng, fit_camera(camera, groups, fill=fill), centres, follow)
        low, high = _covers(actor, poses, cameras)
        if low < MIN_COVER:
            fill, reach = min(0.97, fill * 1.1), reach * 0.7
        elif high > MAX_COVER:
            fill *= 0.93
        else:
            break
    shot = Shot(0, NUM_FRAMES, seed, 0.0, cameras, [{1: pose} for pose in poses])
    return Clip(
        name, "single", ["moving-camera" if cameras[0] != cameras[-1] else "still-camera"], seed, [seed], [shot]
    )


def _spin(rng: np.random.Generator, scale: float) -> Callable[[float, float, float], Pose]:
    """A turn of its own for each object: position and time -> pose."""
    start, sweep = rng.uniform(0, 360), rng.choice([-1, 1]) * rng.uniform(90, 260)
    return lambda x, y, time: Pose(x=float(x), y=float(y), yaw_deg=float(start + sweep * time), scale=scale)


def _stand_motions(rng: np.random.Generator, count: int) -> list[Motion]:
    """Objects side by side (three or four: in a zigzag), each moving a little on its place; the last on the right."""
    motions: list[Motion] = []
    gap, zigzag = (2.35, 0.0) if count < 3 else (1.8, 0.95)
    for index in range(count):
        spin, swing, phase = _spin(rng, 0.95), rng.uniform(0.05, 0.25), rng.uniform(0, 6.3)
        place = (index - (count - 1) / 2) * gap
        depth = zigzag * (-1) ** index + rng.uniform(-0.6, 0.6) * (count < 3)

        def pose(time: float, spin=spin, place=place, depth=depth, swing=swing, phase=phase) -> Pose:
            return spin(place + swing * np.sin(5 * time + phase) * 0.5, depth + swing * np.cos(5 * time + phase), time)

        motions.append(pose)
    return motions


def _lane_motions(rng: np.random.Generator, count: int, *, behind: bool) -> list[Motion]:
    """Objects in lanes one behind the other: they cross, or (`behind`) all but the first pass behind the first."""
    motions: list[Motion] = []
    lanes = np.linspace(-1.05, 1.05 * (count - 1), count) if count < 4 else np.linspace(-2.1, 4.2, 4)
    side = float(rng.choice([-1, 1]))
    for index in range(count):
        spin = _spin(rng, 1.0 if index == 0 else float(rng.uniform(0.78, 0.95)))
        way, start = side * (-1) ** index, rng.uniform(1.5, 2.1)
        bend, late = rng.uniform(-0.15, 0.15), rng.uniform(-0.12, 0.12)

        def pose(time: float, spin=spin, index=index, way=way, start=start, bend=bend, late=late) -> Pose:
            y = lanes[index] + bend * np.sin(3 * time)
            if behind and index == 0:
                return spin(0.25 * np.sin(4 * time), y, time)
            eased = float(np.clip(time + late * np.sin(np.pi * time), 0, 1))
            return spin(way * start * (2 * eased - 1), y, time)

        motions.append(pose)
    return motions


def _exit_motions(rng: np.random.Generator, count: int) -> list[Motion]:
    """The last object leaves the picture on the right and returns; the others stay."""
    motions = _stand_motions(rng, count)
    stand, goal = motions[-1], 2.8 + 1.6 * count

    def pose(time: float) -> Pose:
        out = np.clip((time - 0.12) / 0.28, 0, 1) - np.clip((time - 0.62) / 0.28, 0, 1)
        here = stand(time)
        return replace(here, x=float(here.x + goal * out * out * (3 - 2 * out)))

    motions[-1] = pose
    return motions


def _shot_motions(rng: np.random.Generator, kind: str, count: int) -> list[Motion]:
    if kind == "twins":
        return _stand_motions(rng, count)
    if kind == "exit_return":
        return _exit_motions(rng, count)
    return _lane_motions(rng, count, behind=kind == "occlusion")


def _mirrored(pose: Pose, side: int) -> Pose:
    """The pose with left and right exchanged where `side` is -1; the object's turn is kept."""
    return replace(pose, x=pose.x * side)


def _plan_shot(
    rng: np.random.Generator, kind: str, ids: list[int], actors: list[Actor], span: tuple[int, int], stage_seed: int
) -> Shot:
    """One shot of the given kind with the actors `ids` (instance numbers); the camera sees all that should be seen."""
    length = span[1] - span[0]
    motions = _shot_motions(rng, kind, len(ids))
    times, side = np.linspace(0, 1, length), int(rng.choice([-1, 1]))
    poses = [
        {number: _mirrored(motion(float(t)), side) for number, motion in zip(ids, motions, strict=True)} for t in times
    ]
    # Who leaves the picture is left out of the framing between leaving and returning.
    framed = [
        actors[number - 1].points(pose)
        for frame, t in list(zip(poses, times, strict=True))[:: max(1, length // 10)]
        for number, pose in frame.items()
        if kind != "exit_return" or number != ids[-1] or t < 0.12 or t > 0.9
    ]
    camera = Camera((0, 0, 0.8), 10, float(rng.uniform(14, 34)), fov_deg=float(rng.uniform(30, 42)))
    fitted = fit_camera(camera, framed, fill=float(rng.uniform(0.86, 0.95)))
    cameras = _moving_camera(rng, fitted, np.zeros((length, 2)), 0.0)
    return Shot(*span, stage_seed, 2.5, cameras, poses)


def plan_multi(seed: int, name: str, load: Callable[[int], Actor], *, kind: str, twins: bool) -> Clip:
    """Two to four objects of the seeds from `seed` on, doing `kind`; with `twins` the last repeats the first."""
    rng = np.random.default_rng([seed, 5])
    count = int(rng.choice([2, 3, 4], p=[0.45, 0.4, 0.15] if kind in ("twins", "cut") else [0.6, 0.4, 0.0]))
    object_seeds = [seed + i for i in range(count)]
    if twins:
        object_seeds[-1] = object_seeds[0]
    actors = [load(s) for s in object_seeds]
    ids = list(range(1, count + 1))
    tags: list[str] = [kind, "twins"] if twins and kind != "twins" else [kind]
    if kind != "cut":
        return Clip(
            name, "multi", tags, seed, object_seeds, [_plan_shot(rng, kind, ids, actors, (0, NUM_FRAMES), seed)]
        )
    edges = [0, *sorted(int(c) for c in rng.choice([[17, 32], [20, 36], [23, NUM_FRAMES]])), NUM_FRAMES]
    shots = []
    for index, span in enumerate(pairwise(edges)):
        if span[0] == span[1]:
            continue
        inner = str(rng.choice(["twins", "crossing", "occlusion"]))
        cast = ids if count < 3 or index == 0 else [int(i) for i in rng.permutation(ids)[: count - 1]]
        shots.append(_plan_shot(rng, inner, cast, actors, span, seed + index))
        tags += [inner] if inner in ("crossing", "occlusion") and inner not in tags else []
    return Clip(name, "multi", tags, seed, object_seeds, shots)


def cast_of(shot: Shot, frame: int, actors: list[Actor]) -> tuple[list[int], Cast]:
    """Instance numbers and posed actors of a frame (counted from the clip's start)."""
    poses = shot.poses[frame - shot.start]
    return list(poses), [(actors[number - 1], pose) for number, pose in poses.items()]
