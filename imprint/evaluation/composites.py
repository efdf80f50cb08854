"""The pictures that are measured: the model's composites, in resumable batches, and the baselines'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imprint.core.pixels import load_image, save_image
from imprint.core.progress import show_progress
from imprint.evaluation.baselines import clone_object, match_colours, paste_object, place_object
from imprint.evaluation.trials import Trial
from imprint.inference.inputs import Request

if TYPE_CHECKING:
    from imprint.inference.composer import Composite, Compositor

METHODS = ("ours", "from_noise", "paste", "matched", "poisson")
BASELINES = METHODS[2:]


@dataclass(frozen=True)
class Made:
    """A method's answer. picture: RGB uint8; opacity: uint8 [h, w], of the object before it is cut at the hole, None
    where the method has none."""

    picture: np.ndarray
    opacity: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the model's pictures are made. steps, guidance, draws, strength: see `imprint.models.Sampling`, of
    which None is the model's own; from_noise_cases: so many cases (of each stratum) are also made from noise alone."""

    steps: int
    guidance: float
    draws: int
    strength: float | None
    from_noise_cases: int
    batch_size: int


Composites = dict[str, list[Made | None]]  # method => one per trial, None where the method was not tried


def make_composites(
    compositor: Compositor, trials: Sequence[Trial], making: Making, *, work_dir: Path | None = None
) -> Composites:
    """All methods' pictures. Finished batches of the model's are kept in `work_dir` where there is one.

    `from_noise` is the paper's way, of the first `from_noise_cases` cases: the hole is never seen and the appearance
    flow has no part in it. Where `ours` are made so anyway, as without a flow, nothing is made twice.
    """
    own = compositor.model.preset.sampling.strength if making.strength is None else making.strength
    count = making.from_noise_cases if own < 1.0 else 0
    places = {
        "ours": list(range(len(trials))),
        "from_noise": [number for number, trial in enumerate(trials) if trial.place < count],
    }
    made: Composites = {}
    with show_progress("evaluate: composites", sum(map(len, places.values()))) as bar:
        for method, chosen in places.items():
            made[method] = [None] * len(trials)
            paper = method == "from_noise"
            folder = None if work_dir is None else work_dir / "composites" / method
            for start in range(0, len(chosen), making.batch_size):
                numbers = chosen[start : start + making.batch_size]
                batch = [trials[number] for number in numbers]
                answers = _make_batch(compositor, batch, making, paper=paper, folder=folder)
                for number, answer in zip(numbers, answers, strict=True):
                    made[method][number] = answer
                bar.advance(len(batch), note=f"{method.replace('_', ' ')}, {batch[0].view_change}, {batch[0].level}")
    return made | make_baselines(trials)


def make_baselines(trials: Sequence[Trial]) -> Composites:
    """What needs no model."""
    made: Composites = {method: [] for method in BASELINES}
    for trial in trials:
        scene = (trial.case.plate, trial.hole)
        placed = place_object(trial.reference, trial.hole, trial.level)
        opacity = placed[..., 3]
        made["paste"].append(Made(paste_object(placed, *scene), opacity))
        made["matched"].append(Made(paste_object(match_colours(placed, *scene), *scene), opacity))
        made["poisson"].append(Made(clone_object(placed, *scene), opacity))
    return made


def build_request(trial: Trial, *, paper: bool) -> Request:
    """What the model is given. `replace` (the paper's) never sees what lies in the hole; what is not the paper's keeps
    it where the model can (`insert`)."""
    return Request(
        object_rgba=trial.reference,
        background=trial.case.plate,
        hole=trial.hole,
        level=trial.level,
        seed=trial.seed,
        mode="replace" if paper else None,
    )


def _make_batch(
    compositor: Compositor, trials: Sequence[Trial], making: Making, *, paper: bool, folder: Path | None
) -> list[Made]:
    """A batch is made whole or read whole, so that a resumed run computes in the same batches."""
    names = [Path(trial.view_change) / trial.level / f"{trial.case.name}.png" for trial in trials]
    paths = [] if folder is None else [folder / name for name in names]
    if paths and all(path.is_file() for path in paths):
        return [_load(path) for path in paths]
    requests = [build_request(trial, paper=paper) for trial in trials]
    sampling = {"steps": making.steps, "guidance": making.guidance, "draws": making.draws}
    composites = compositor.composite_batch(requests, **sampling, strength=1.0 if paper else making.strength)
    answers = [_to_made(composite) for composite in composites]
    for path, made in zip(paths, answers, strict=bool(paths)):
        save_image(path, made.picture if made.opacity is None else np.dstack([made.picture, made.opacity]))
    return answers


def _to_made(composite: Composite) -> Made:
    """Opacity as it is kept on disk, so that a resumed run measures the same; a picture from noise has none."""
    if composite.opacity is None:
        return Made(composite.picture, None)
    return Made(composite.picture, np.rint(np.clip(composite.opacity, 0.0, 1.0) * 255).astype(np.uint8))


def _load(path: Path) -> Made:
    """An alpha channel carries the object's opacity."""
    image = load_image(path)
    return Made(np.ascontiguousarray(image[..., :3]), image[..., 3].copy() if image.shape[2] == 4 else None)
