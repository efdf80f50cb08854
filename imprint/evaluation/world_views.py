"""What it is worth to give several views of an object: the flow tries each and keeps what fits best.

The paper's first named limit is a large change of view; a second picture is the practical answer to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from imprint.core.masks import MaskLevel
from imprint.core.progress import show_progress
from imprint.core.records import PairRecord
from imprint.core.view_changes import ViewChange
from imprint.data import ShardReader
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.composites import Making, build_request
from imprint.evaluation.gradients import compute_agreement
from imprint.evaluation.measures import compute_psnr_db
from imprint.evaluation.summary import Groups
from imprint.evaluation.trials import Trial
from imprint.evaluation.world_composites import Chosen, build_case
from imprint.inference.composer import Compositor
from imprint.inference.inputs import Request

VIEW_COUNTS = (1, 4, 12)
LEVEL: MaskLevel = "box"  # where the hole says least about the view
MEASURES = {"object_psnr_db": 2, "gradient_agreement": 3}  # name => decimals of the table


def measure_view_counts(
    compositor: Compositor, reader: ShardReader, chosen: Chosen, *, making: Making, groups: Groups
) -> dict[str, Any]:
    """Stratum of the first view => number of views => measure => [mean, low, high]. Views are nested: those of a larger
    number hold those of a smaller, and the first is the pair's own. Empty for a model that does not choose."""
    model = compositor.model
    if model.appearance_flow is None or model.preset.max_references > 1:
        return {}
    found: dict[str, Any] = {}
    with show_progress("evaluate-world: views", sum(map(len, chosen.values()))) as bar:
        for view_change, pairs in chosen.items():
            rows = []
            for pair in pairs:
                rows.append(_measure_pair(compositor, reader, pair, view_change, making=making, seed=groups.seed))
                bar.advance()
            found[view_change] = {
                str(count): {name: _summarise([row[count][name] for row in rows], groups) for name in MEASURES}
                for count in VIEW_COUNTS
            }
    return found


def format_view_counts(found: Mapping[str, Any]) -> str:
    """As a table in Markdown."""
    heads = [f"{count} view{'s' * (count > 1)}" for count in VIEW_COUNTS]
    lines = [f"| first view's change, degrees | measure | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for view_change, counts in found.items():
        for name, decimals in MEASURES.items():
            cells = [_format_cell(counts[str(count)][name], decimals) for count in VIEW_COUNTS]
            lines.append(f"| {view_change} | {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measure_pair(
    compositor: Compositor,
    reader: ShardReader,
    pair: PairRecord,
    view_change: ViewChange,
    *,
    making: Making,
    seed: int,
) -> dict[int, dict[str, float | None]]:
    case = build_case(*reader.read_pair(pair), pair=pair)
    trial = Trial(case, 0, view_change, LEVEL, seed)
    rng = np.random.default_rng([seed, int(pair.pair_id[:8], 16)])
    more = [view.object_rgba for view in reader.read_others(pair, list(rng.random(max(VIEW_COUNTS) - 1)))]
    one = build_request(trial, paper=False)
    requests: Sequence[Request] = [replace(one, more_objects=tuple(more[: count - 1])) for count in VIEW_COUNTS]
    sampling = {name: getattr(making, name) for name in ("steps", "guidance", "draws", "strength")}
    pictures = [made.picture for made in compositor.composite_batch(requests, **sampling)]
    return {
        count: {
            "object_psnr_db": compute_psnr_db(picture, case.truth, case.object_mask),
            "gradient_agreement": compute_agreement(picture, case.truth, case.object_mask),
        }
        for count, picture in zip(VIEW_COUNTS, pictures, strict=True)
    }


def _summarise(values: Sequence[float | None], groups: Groups) -> list[float] | None:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    ends = compute_interval(known, samples=groups.bootstrap_samples, seed=groups.seed)
    return [round(float(value), 4) for value in (known.mean(), *ends)]


def _format_cell(cell: Sequence[float] | None, decimals: int) -> str:
    if cell is None:
        return "-"
    mean, low, high = (f"{value:.{decimals}f}" for value in cell)
    return f"{mean} ({low} to {high})"
