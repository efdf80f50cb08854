"""Renders the frames and masks of a clip, and encodes clips as H.264."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np

from demo.catalogue import FPS, NUM_FRAMES, SIZE_PX, ClipEntry, clip_entry
from demo.clips import Clip, cast_of, plan_multi, plan_single
from demo.pictures import compute_exposure, to_srgb, write_png
from demo.rendering import render_frame, render_mask
from demo.world import Actor, build_stage

NUM_SAMPLES = 8
CRF = 17


def _plan(entry: ClipEntry) -> tuple[Clip, list[Actor]]:
    loaded: dict[int, Actor] = {}

    def load(seed: int) -> Actor:
        if seed not in loaded:
            loaded[seed] = Actor(seed)
        return loaded[seed]

    if entry.kind == "single":
        clip = plan_single(entry.seed, entry.name, load)
    else:
        clip = plan_multi(entry.seed, entry.name, load, kind=entry.kind, twins=entry.twins)
    return clip, [load(seed) for seed in clip.object_seeds]


def describe_clip(clip: Clip, backgrounds: list[str], masks: np.ndarray) -> dict:
    """Record of `clips.json`; `covers` is the smallest and largest share of a frame that objects cover."""
    covers = (masks > 0).mean((1, 2))
    shots = [
        {"start": s.start, "stop": s.stop, "stage_seed": s.stage_seed, "background": b, "objects": sorted(s.poses[0])}
        for s, b in zip(clip.shots, backgrounds, strict=True)
    ]
    return {
        "name": clip.name,
        "kind": clip.kind,
        "tags": clip.tags,
        "num_objects": len(clip.object_seeds),
        "seed": clip.seed,
        "object_seeds": clip.object_seeds,
        "fps": FPS,
        "num_frames": NUM_FRAMES,
        "size_px": SIZE_PX,
        "covers": [round(float(covers.min()), 4), round(float(covers.max()), 4)],
        "shots": shots,
    }


def write_clip(
    index: int, folder: Path, *, first_seed: int, size_px: int = SIZE_PX, num_samples: int = NUM_SAMPLES
) -> None:
    """Frames and masks of a clip as two PNGs (frames stacked downwards) and its record, written last."""
    entry = clip_entry(index, first_seed)
    name = entry.name
    record = folder / f"{name}.json"
    if record.exists():
        return
    clip, actors = _plan(entry)
    frames, masks, backgrounds = [], [], []
    for shot in clip.shots:
        stage = build_stage(shot.stage_seed, room=shot.room)
        backgrounds.append(stage.background)
        rng = np.random.default_rng([shot.stage_seed, 9])
        first = render_frame(
            stage, cast_of(shot, shot.start, actors)[1], shot.cameras[0], size_px=64, num_samples=8, seed=0
        )
        exposure = compute_exposure(first, level=float(rng.uniform(0.45, 0.72)))
        for frame in range(shot.start, shot.stop):
            numbers, cast = cast_of(shot, frame, actors)
            camera = shot.cameras[frame - shot.start]
            # One seed for all frames: what noise is left stands still, and costs no bits.
            linear = render_frame(stage, cast, camera, size_px=size_px, num_samples=num_samples, seed=index)
            frames.append(to_srgb(linear, exposure))
            masks.append(np.asarray([0, *numbers], np.uint8)[render_mask(cast, camera, size_px=size_px)])
    write_png(folder / f"{name}.frames.png", np.concatenate(frames))
    write_png(folder / f"{name}.masks.png", np.concatenate(masks))
    record.write_text(json.dumps(describe_clip(clip, backgrounds, np.stack(masks))))


def encode_clip(frames_png: Path, target: Path, *, crf: int = CRF) -> None:
    """Encode a stack of frames as H.264 (yuv420p, FPS frames a second), single-threaded for equal bytes."""
    stack = cv2.imread(str(frames_png), cv2.IMREAD_COLOR_RGB)
    if stack is None:
        raise FileNotFoundError(f"{frames_png} is missing or damaged: render its clip anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        options = {"crf": str(crf), "preset": "slow", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = stack.shape[1]
        stream.pix_fmt = "yuv420p"
        for picture in np.split(stack, NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
