"""Composites of a rendered world's held-out objects in scenes, by view change and mask level."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from imprint.core.masks import MASK_LEVELS, MaskLevel, add_contact_margin, compute_mask_levels, compute_object_size_px
from imprint.core.pixels import resize_image, resize_mask
from imprint.core.records import PairKind, PairRecord, Split, build_id
from imprint.core.view_changes import VIEW_CHANGES, ViewChange, find_view_change
from imprint.data import ShardReader, View
from imprint.evaluation.cases import Case
from imprint.evaluation.composites import Making, build_request, make_composites
from imprint.evaluation.measuring import Shown
from imprint.evaluation.summary import Groups, measure_all, summarise_identity, summarise_rows
from imprint.evaluation.trials import Trial
from imprint.inference.composer import Compositor

MAX_MARGIN_SHARE = 0.08  # of the object's size, for its contact shadow; as in training from none to so much
LARGE_PX = 768  # side of the picture that a composite is timed on
SHADOW_SHARE = 0.03  # of white: scene and plate differ by more beside the object where its shadow or its light falls

Chosen = Mapping[ViewChange, Sequence[PairRecord]]


def choose_scene_pairs(
    pairs: Sequence[PairRecord], objects: Sequence[str], *, per_stratum: int, seed: int, split: Split = "test"
) -> dict[ViewChange, list[PairRecord]]:
    """For each stratum of view change at most `per_stratum` `video` pairs of the split, of different `objects` (clip
    ids): which ones depends on the seed, the stratum and the object alone. A world's pairs know the turn between their
    views; its cameras' elevations differ by up to 37 degrees more."""
    groups = group_by_object(pairs, "video", seed, split)
    chosen: dict[ViewChange, list[PairRecord]] = {}
    for view_change in VIEW_CHANGES:
        ordered = sorted(objects, key=lambda clip: build_id(seed, view_change, clip))
        found = (_find_first(groups.get(clip, []), view_change) for clip in ordered)
        chosen[view_change] = [pair for pair in found if pair is not None][:per_stratum]
    return {name: found for name, found in chosen.items() if found}


def group_by_object(
    pairs: Sequence[PairRecord], kind: PairKind, seed: int, split: Split
) -> dict[str, list[PairRecord]]:
    """Clip id => its pairs of kind and split, in an order drawn by the seed."""
    groups: dict[str, list[PairRecord]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: build_id(seed, pair.pair_id)):
        if pair.kind == kind and pair.split == split:
            groups[pair.clip_id].append(pair)
    return groups


def measure_composites(
    compositor: Compositor, reader: ShardReader, chosen: Chosen, *, making: Making, groups: Groups
) -> tuple[dict[str, Any], Shown]:
    """The numbers of all methods, of every chosen pair at every mask level, and the pictures."""
    cases = [build_case(*reader.read_pair(pair), pair=pair) for found in chosen.values() for pair in found]
    trials = build_trials(cases, seed=groups.seed)
    shown = Shown(trials, make_composites(compositor, trials, making))
    rows = measure_all(cases, trials, shown.composites)
    counts = {"num_composites": len(trials), "num_objects": len({case.name for case in cases})}
    identity = summarise_identity(cases, list(chosen))
    return counts | {"identity": identity, **summarise_rows(rows, groups)}, shown


def time_composite(compositor: Compositor, trial: Trial, making: Making) -> float:
    """Seconds of one composite into the trial's plate, enlarged to LARGE_PX; the second of two. No number of the
    protocol: it is the machine's."""
    size_hw = (LARGE_PX, LARGE_PX)
    request = build_request(trial, paper=False)
    large = replace(
        request, background=resize_image(request.background, size_hw), hole=resize_mask(request.hole, size_hw)
    )
    sampling = {name: getattr(making, name) for name in ("steps", "guidance", "draws", "strength")}
    compositor.composite_batch([large], **sampling)
    started_s = time.monotonic()
    compositor.composite_batch([large], **sampling)
    return time.monotonic() - started_s


def build_case(reference: View, target: View, *, pair: PairRecord) -> Case:
    """The reference into the target's scene. Without a rendered plate the largest hole is filled from its rim (Telea
    2004), so that no method sees the true object, and there is no shadow to measure."""
    margin = MAX_MARGIN_SHARE * np.random.default_rng(int(build_id(pair.pair_id)[:8], 16)).random()
    holes = build_holes(target.mask, margin)
    if target.plate is None:
        filled = cv2.inpaint(target.scene, holes["box"].astype(np.uint8), 3, cv2.INPAINT_TELEA)
        plate, shadow = np.where(holes["box"][..., None], filled, target.scene), np.zeros_like(target.mask)
    else:
        plate = target.plate
        change = np.abs(plate.astype(np.float32) - target.scene).mean(axis=-1)
        shadow = (change > 255 * SHADOW_SHARE) & ~target.mask
    references: dict[ViewChange, np.ndarray] = {find_view_change(180.0 * pair.view_change): reference.object_rgba}
    return Case(pair.clip_id, references, plate, target.scene, target.mask, shadow, holes)


def build_holes(mask: np.ndarray, margin: float) -> dict[MaskLevel, np.ndarray]:
    """All levels; but for `exact` with room for the contact shadow, where something of the picture stays."""
    holes = compute_mask_levels(mask)
    size_px = compute_object_size_px(mask)
    grown = {level: add_contact_margin(hole, size_px, margin) for level, hole in holes.items()}
    return {level: hole if level == "exact" or grown[level].all() else grown[level] for level, hole in holes.items()}


def build_trials(cases: Sequence[Case], *, seed: int) -> list[Trial]:
    """Every case at every mask level; the cases are in the order of their strata."""
    places: dict[ViewChange, int] = defaultdict(int)
    trials = []
    for number, case in enumerate(cases):
        view_change = next(iter(case.references))
        place, places[view_change] = places[view_change], places[view_change] + 1
        trials += [Trial(case, place, view_change, level, seed + number) for level in MASK_LEVELS]
    return trials


def _find_first(pairs: Sequence[PairRecord], view_change: ViewChange) -> PairRecord | None:
    return next((pair for pair in pairs if find_view_change(180.0 * pair.view_change) == view_change), None)
