"""Any compositor's folder on the test cases with ground truth, so that versions of different times can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imprint.core.files import compute_path_digest, publish_dir, write_json_atomic
from imprint.core.params import Evaluate
from imprint.core.stage import open_stage
from imprint.evaluation.cases import load_cases
from imprint.evaluation.curves import load_curves
from imprint.evaluation.measuring import composite_cases, measure_cases
from imprint.evaluation.report import write_report


def evaluate_model(model: Path, section: Evaluate, *, out: Path, root: Path = Path(".")) -> dict[str, Any]:
    """Measure the compositor in `model`; fill `out` with `evaluation.json`, `cases.csv`, the page and its pictures.

    The numbers are those of stage `evaluate` under the same protocol; the losses on held-out pairs, which need the
    shards, are left out (`held_out` is empty). Run again after a stop, it reuses finished batches.
    """
    import torch

    from imprint.inference.loading import load_compositor

    torch.set_num_threads(section.threads)
    case_set = load_cases(root / section.cases, section.levels, section.max_cases)
    digest = compute_path_digest(model)
    run = open_stage(f"evaluate_version/{digest[:16]}", section, [Path(section.cases)], __name__, root)
    compositor = load_compositor(model.resolve().as_posix())
    shown = composite_cases(compositor, case_set, section, work_dir=run.work_dir)
    rows, metrics = measure_cases(shown, case_set, section, held_out={}, model=digest[:12])
    report = run.work_dir / "report"
    curves = load_curves({"train_compositor": model})
    write_report(report, metrics, rows=rows, shown=shown, curves=curves, grid_rows=section.grid_rows)
    write_json_atomic(report / "evaluation.json", metrics)
    publish_dir(report, out)
    return metrics
