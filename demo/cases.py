"""Test cases with ground truth: one object, seen alone in four reference views and, elsewhere, put into a scene."""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo.catalogue import CASE_SEEDS, SIZE_PX
from demo.pictures import compute_exposure, to_srgb, write_png
from demo.references import View, render_references
from demo.rendering import render_image, render_mask
from demo.world import Actor, Camera, Pose, Stage, build_stage, fit_camera
from imprint.core.masks import compute_mask_levels

NUM_SAMPLES = 256
MIN_COVER, MAX_COVER = 0.08, 0.25
BORDER_PX = 3  # the hole box keeps this far from the picture's edge
MIN_SHADOW = 0.008  # share of the picture
MAX_HOLE = 0.62  # share of the picture that the hole box may take
SHADOW_LEVEL = 4.0  # how much darker, of 255, a pixel must be to count as shadow
MAX_GLOW = 8.0  # 99th percentile of the change outside object and shadow (bounced light), of 255
DRAFT_SAMPLES, DRAFT_GLOW = 32, 14.0  # a draft is half the size and noisier


@dataclass(frozen=True)
class CasePlan:
    """Where the object stands in the truth, and how it is seen."""

    stage_seed: int
    pose: Pose
    camera: Camera


def _floor_shadow(points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(N, 3) points cast on the floor away from a light in the given direction."""
    return points - points[:, 2:] / direction[2] * direction


def plan_case(seed: int, attempt: int, actor: Actor) -> tuple[CasePlan, Stage]:
    """Draw a scene that frames the object with its shadow."""
    rng = np.random.default_rng([seed, 8, attempt])
    stage_seed = CASE_SEEDS.start + 2000 + (seed - CASE_SEEDS.start) * 100 + attempt
    stage = build_stage(stage_seed, high_light=True)
    yaw, _, _ = rng.uniform(0, 360), rng.choice([-1, 1]), rng.uniform(30, 150)  # the last two: earlier cases' reference
    pose = Pose(yaw_deg=float(yaw))
    points = actor.points(pose)
    camera = Camera((0, 0, 0.7), 8, float(rng.uniform(14, 34)), fov_deg=float(rng.uniform(30, 42)))
    groups = [points, _floor_shadow(points, stage.light.direction())]
    camera = fit_camera(camera, groups, fill=float(rng.uniform(0.7, 0.84)))
    cover = float((render_mask([(actor, pose)], camera, size_px=SIZE_PX // 2) > 0).mean())
    back = max(1.0, (cover / float(rng.uniform(0.1, 0.21))) ** 0.5)
    camera = replace(camera, distance=camera.distance * back)
    return CasePlan(stage_seed, pose, camera), stage


def compute_shadow(plate: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Bool (H, W): outside the object's mask, truth darker than plate by SHADOW_LEVEL, without speckle."""
    darker = (plate.astype(np.float32) - truth.astype(np.float32)).mean(-1)
    # The object itself must not leak into the smoothing.
    free = (cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0).astype(np.float32)
    weight = cv2.GaussianBlur(free, (0, 0), 1.0)
    smooth = cv2.GaussianBlur(darker * free, (0, 0), 1.0) / np.maximum(weight, 1e-3)
    raw = ((smooth > SHADOW_LEVEL) & ~mask).astype(np.uint8)
    cleaned = cv2.morphologyEx(raw, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(cleaned, connectivity=8)
    big = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= 24]
    return np.isin(labels, big)


def compute_holes(mask: np.ndarray, shadow: np.ndarray) -> dict[str, np.ndarray]:
    """Hole per mask level, the box grown to hold the shadow."""
    holes: dict[str, np.ndarray] = {str(k): v.copy() for k, v in compute_mask_levels(mask).items()}
    rows, columns = np.nonzero(holes["box"] | shadow)
    holes["box"][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return holes


def _fault(plate: np.ndarray, truth: np.ndarray, mask: np.ndarray, *, max_glow: float) -> str | None:
    """Why a drawn case does not do, or None."""
    if not MIN_COVER <= mask.mean() <= MAX_COVER:
        return "cover"
    shadow = compute_shadow(plate, truth, mask)
    if shadow.sum() < MIN_SHADOW * mask.size:
        return "no shadow"
    box = compute_holes(mask, shadow)["box"]
    inside = np.zeros_like(box)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    if (box & ~inside).any() or box.mean() > MAX_HOLE:
        return "box"
    near = cv2.dilate((mask | shadow).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    change = truth.astype(np.float32) - plate.astype(np.float32)
    change[near] = 0  # before smoothing: the object must not leak
    glow = np.abs(cv2.GaussianBlur(change, (0, 0), 1.0)).max(-1)
    return "glow" if np.percentile(glow[~near], 99) > max_glow else None


def _render_pair(
    plan: CasePlan, stage: Stage, actor: Actor, *, draft: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plate, truth (sRGB bytes) and exact mask; a draft has half the size and few samples."""
    size_px = SIZE_PX // 2 if draft else SIZE_PX
    cast = [(actor, plan.pose)]
    mask = render_mask(cast, plan.camera, size_px=size_px) > 0
    num_samples = DRAFT_SAMPLES if draft else NUM_SAMPLES
    empty = render_image(stage, [], plan.camera, size_px=size_px, num_samples=num_samples, seed=plan.stage_seed)
    full = render_image(stage, cast, plan.camera, size_px=size_px, num_samples=num_samples, seed=plan.stage_seed)
    level = float(np.random.default_rng([plan.stage_seed, 9]).uniform(0.45, 0.68))
    exposure = compute_exposure(empty, level=level)
    return to_srgb(empty, exposure), to_srgb(full, exposure), mask


def _draw_case(seed: int, actor: Actor) -> tuple[CasePlan, Stage, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """First plan whose draft and final pictures are without fault."""
    for attempt in range(100):
        plan, stage = plan_case(seed, attempt, actor)
        if _fault(*_render_pair(plan, stage, actor, draft=True), max_glow=DRAFT_GLOW):
            continue
        final = _render_pair(plan, stage, actor, draft=False)
        if _fault(*final, max_glow=MAX_GLOW) is None:
            return plan, stage, final
    raise RuntimeError(f"no scene of 100 suits object {seed}")


def write_case(index: int, folder: Path, *, scenes: Path | None = None) -> None:
    """Write `case_<index>/`: pictures, masks, holes, and `case.json` last. With `scenes`, an archive of cases, all but
    the references comes from there, byte for byte."""
    seed = CASE_SEEDS.start + index
    name = f"case_{index:03d}"
    target = folder / name
    if (target / "case.json").exists():
        return
    actor = Actor(seed)
    record = _write_scene(seed, actor, target) if scenes is None else _copy_scene(scenes, target)
    truth = View(Pose(**record["view"]["pose"]), _read_camera(record["view"]["camera"]))
    pictures, about = render_references(seed, actor, truth)
    for stem, picture in pictures.items():
        write_png(target / f"{stem}.png", picture)
    record["view"] |= truth.record(actor)
    (target / "case.json").write_text(json.dumps(record | about, indent=1) + "\n")


def _write_scene(seed: int, actor: Actor, target: Path) -> dict[str, Any]:
    """Plate, truth, masks and holes; the case's record without its references."""
    plan, stage, (plate, truth, mask) = _draw_case(seed, actor)
    shadow = compute_shadow(plate, truth, mask)
    holes = compute_holes(mask, shadow)
    grey = {"object_mask": mask, "shadow_mask": shadow} | {f"hole_{k}": v for k, v in holes.items()}
    pictures = {"plate": plate, "truth": truth} | {k: v.astype(np.uint8) * 255 for k, v in grey.items()}
    for key, picture in pictures.items():
        write_png(target / f"{key}.png", picture)
    return {
        "name": target.name,
        "seed": seed,
        "stage_seed": plan.stage_seed,
        "background": stage.background,
        "cover": round(float(mask.mean()), 4),
        "shadow_cover": round(float(shadow.mean()), 4),
        "hole_box_cover": round(float(holes["box"].mean()), 4),
        "view": {"pose": asdict(plan.pose), "camera": asdict(plan.camera), "light": asdict(stage.light)},
    }


def _copy_scene(scenes: Path, target: Path) -> dict[str, Any]:
    """The same from an archive of cases."""
    record: dict[str, Any] = {}
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(scenes) as archive:
        for info in archive:
            folder, _, file = info.name.rpartition("/")
            if folder != f"cases/{target.name}" or file.startswith("reference"):
                continue
            data = archive.extractfile(info).read()  # type: ignore[union-attr]
            if file == "case.json":
                record = json.loads(data)
            else:
                (target / file).write_bytes(data)
    if not record:
        raise RuntimeError(f"{scenes} has no {target.name}")
    return {key: value for key, value in record.items() if not key.startswith("reference")}


def _read_camera(values: dict[str, Any]) -> Camera:
    camera = Camera(**values)
    return replace(camera, target=tuple(camera.target))  # a list in JSON
