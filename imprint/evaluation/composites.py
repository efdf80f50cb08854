"""The pictures that are measured: the model's composites, in resumable batches, and the two baselines'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.params import Evaluate
from imprint.core.pixels import load_image, save_image
from imprint.core.progress import show_progress
from imprint.evaluation.baselines import clone_object, paste_object
from imprint.evaluation.cases import Case
from imprint.inference.inputs import Request

if TYPE_CHECKING:
    from imprint.inference.composer import Compositor

METHODS = ("ours", "paste", "poisson")
Composites = dict[MaskLevel, dict[str, list[np.ndarray]]]  # level => method => one RGB uint8 picture per case


def make_composites(compositor: Compositor, cases: Sequence[Case], *, section: Evaluate, work_dir: Path) -> Composites:
    """All methods' pictures of all cases and levels. Finished batches of the model's are kept in `work_dir`."""
    made: Composites = {}
    with show_progress("evaluate: composites", len(cases) * len(section.levels)) as bar:
        for level in section.levels:
            ours: list[np.ndarray] = []
            for start in range(0, len(cases), section.batch_size):
                batch = cases[start : start + section.batch_size]
                paths = [work_dir / "composites" / level / f"{case.name}.png" for case in batch]
                requests = [_build_request(case, level, section.seed + start + i) for i, case in enumerate(batch)]
                ours += _make_batch(compositor, requests, paths, section)
                bar.advance(len(batch), note=level)
            made[level] = {
                "ours": ours,
                "paste": [paste_object(case.reference, case.plate, case.holes[level]) for case in cases],
                "poisson": [clone_object(case.reference, case.plate, case.holes[level]) for case in cases],
            }
    return made


def _build_request(case: Case, level: MaskLevel, seed: int) -> Request:
    return Request(object_rgba=case.reference, background=case.plate, hole=case.holes[level], level=level, seed=seed)


def _make_batch(
    compositor: Compositor, requests: Sequence[Request], paths: Sequence[Path], section: Evaluate
) -> list[np.ndarray]:
    """A batch is made whole or read whole, so that a resumed run computes in the same batches."""
    if all(path.is_file() for path in paths):
        return [load_image(path) for path in paths]
    sampling = {"steps": section.steps, "guidance": section.guidance, "draws": section.draws}
    sampling |= {"strength": section.strength}
    images = [made.picture for made in compositor.composite_batch(requests, **sampling)]
    for path, image in zip(paths, images, strict=True):
        save_image(path, image)
    return images
