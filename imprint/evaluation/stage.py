"""Stage `evaluate`: the compositor against ground truth and baselines, and both training stages on held-out pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imprint.core.files import compute_path_digest, publish_dir, write_json_atomic
from imprint.core.params import Evaluate, Params
from imprint.core.stage import StageRun, open_stage
from imprint.evaluation.cases import CaseSet, load_cases
from imprint.evaluation.curves import load_curves
from imprint.evaluation.measuring import Shown, composite_cases, measure_cases
from imprint.evaluation.report import write_report
from imprint.evaluation.summary import flatten_metrics
from imprint.tracking import start_run

SHARDS = Path("data/shards")
PRETRAINED = Path("models/pretrained")
COMPOSITOR = Path("models/compositor")
REPORT = Path("reports/evaluation")
METRICS = Path("metrics/evaluation.json")


def run_evaluate(params: Params, root: Path = Path(".")) -> None:
    """Write `metrics/evaluation.json` and `reports/evaluation/`. Run again after a stop, it reuses finished batches."""
    section = params.evaluate
    case_set = load_cases(root / section.cases, section.levels, section.max_cases)
    inputs = [Path(section.cases), SHARDS, PRETRAINED, COMPOSITOR]
    run = open_stage("evaluate", section, inputs, __name__, root)
    opened = {"stage": run.name, "key": run.key, "params": run.params, "inputs": run.inputs}
    with start_run(**opened, work_dir=run.work_dir, root=root) as tracker:
        shown, held_out = _run_models(section, case_set, run, root)
        model = compute_path_digest(root / COMPOSITOR)[:12]
        rows, metrics = measure_cases(shown, case_set, section, held_out=held_out, model=model)
        report = run.work_dir / "report"
        models = {"pretrain_encoder": root / PRETRAINED, "train_compositor": root / COMPOSITOR}
        curves = load_curves(models)
        write_report(report, metrics, rows=rows, shown=shown, curves=curves, grid_rows=section.grid_rows)
        publish_dir(report, root / REPORT)
        write_json_atomic(root / METRICS, metrics)
        tracker.log_metrics(flatten_metrics(metrics), step=0)
        for name in ("index.html", "grid.png", "cases.csv"):
            tracker.log_file(report / name, folder="report")


def _run_models(section: Evaluate, case_set: CaseSet, run: StageRun, root: Path) -> tuple[Shown, dict[str, Any]]:
    """Everything that needs torch: the composites, and the losses on held-out pairs."""
    import torch

    from imprint.evaluation.held_out import measure_held_out
    from imprint.inference.loading import load_compositor
    from imprint.models import load_model

    torch.set_num_threads(section.threads)
    compositor = load_compositor(COMPOSITOR.as_posix(), root)
    shown = composite_cases(compositor, case_set, section, work_dir=run.work_dir)
    pretrained = load_model(root / PRETRAINED).to(compositor.model.device)
    models = {"pretrain_encoder": pretrained, "train_compositor": compositor.model}
    return shown, measure_held_out(models, root / SHARDS, section)
