"""Training pictures for a segmentation network: not shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demo.catalogue import MULTI_KINDS, NUM_FRAMES
from demo.clips import cast_of, plan_multi, plan_single
from demo.pictures import compute_exposure, to_srgb, write_png
from demo.rendering import render_frame, render_mask
from demo.world import Actor, build_stage


def write_scene(
    seed: int, folder: Path, *, size_px: int, num_frames: int = 2, multi: bool = False, num_samples: int = 8
) -> None:
    """`<seed>-<k>/image.png` and `mask.png` (0 nothing, 1.. instances): `num_frames` frames of a clip of this seed.

    Two are drawn, more are evenly spaced. multi: never a clip of one object.
    """
    targets = [folder / f"{seed}-{k}" for k in range(num_frames)]
    if (targets[-1] / "image.png").exists():
        return
    rng = np.random.default_rng([seed, 7])
    loaded: dict[int, Actor] = {}

    def load(object_seed: int) -> Actor:
        if object_seed not in loaded:
            loaded[object_seed] = Actor(object_seed)
        return loaded[object_seed]

    if rng.random() < 0.55 and not multi:
        clip = plan_single(seed, str(seed), load)
    else:
        kind = str(rng.choice(MULTI_KINDS))
        clip = plan_multi(seed, str(seed), load, kind=kind, twins=kind == "twins" or rng.random() < 0.3)
    actors = [load(s) for s in clip.object_seeds]
    spaced = np.linspace(0, NUM_FRAMES - 1, num_frames).round().astype(int)
    chosen = rng.choice(NUM_FRAMES, num_frames, replace=False) if num_frames <= 2 else spaced
    for target, frame in zip(targets, chosen, strict=True):
        shot = next(s for s in clip.shots if s.start <= frame < s.stop)
        numbers, cast = cast_of(shot, int(frame), actors)
        camera = shot.cameras[frame - shot.start]
        stage = build_stage(shot.stage_seed, room=shot.room)
        linear = render_frame(stage, cast, camera, size_px=size_px, num_samples=num_samples, seed=seed)
        mask = np.asarray([0, *numbers], np.uint8)[render_mask(cast, camera, size_px=size_px)]
        write_png(target / "mask.png", mask)
        write_png(target / "image.png", to_srgb(linear, compute_exposure(linear, level=float(rng.uniform(0.45, 0.75)))))
