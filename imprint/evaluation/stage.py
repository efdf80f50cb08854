"""Stage `evaluate`: the compositor against ground truth and baselines, and both training stages on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imprint.core.files import compute_path_digest, publish_dir, write_json_atomic
from imprint.core.params import Evaluate, Params
from imprint.core.stage import StageRun, open_stage
from imprint.evaluation.cases import CaseSet, load_cases
from imprint.evaluation.composites import Composites, make_composites
from imprint.evaluation.curves import load_curves
from imprint.evaluation.protocol import build_protocol
from imprint.evaluation.report import write_report
from imprint.evaluation.summary import Row, flatten_metrics, measure_all, summarise_identity, summarise_rows
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
        composites, held_out = _run_models(section, case_set, run, root)
        rows = measure_all(case_set.cases, composites)
        metrics = _collect_metrics(section, case_set, rows, held_out)
        metrics["model"] = compute_path_digest(root / COMPOSITOR)[:12]
        report = run.work_dir / "report"
        models = {"pretrain_encoder": root / PRETRAINED, "train_compositor": root / COMPOSITOR}
        write_report(
            report,
            metrics,
            rows=rows,
            cases=case_set.cases,
            composites=composites,
            curves=load_curves(models),
            grid_rows=section.grid_rows,
        )
        publish_dir(report, root / REPORT)
        write_json_atomic(root / METRICS, metrics)
        tracker.log_metrics(flatten_metrics(metrics), step=0)
        for name in ("index.html", "grid.png", "cases.csv"):
            tracker.log_file(report / name, folder="report")


def _run_models(section: Evaluate, case_set: CaseSet, run: StageRun, root: Path) -> tuple[Composites, dict[str, Any]]:
    """Everything that needs torch: the composites, and the losses on held-out pairs."""
    import torch

    from imprint.evaluation.held_out import measure_held_out
    from imprint.inference.loading import load_compositor
    from imprint.models import load_model

    torch.set_num_threads(section.threads)
    compositor = load_compositor(COMPOSITOR.as_posix(), root)
    composites = make_composites(compositor, case_set.cases, section=section, work_dir=run.work_dir)
    pretrained = load_model(root / PRETRAINED).to(compositor.model.device)
    models = {"pretrain_encoder": pretrained, "train_compositor": compositor.model}
    return composites, measure_held_out(models, root / SHARDS, section)


def _collect_metrics(
    section: Evaluate, case_set: CaseSet, rows: Sequence[Row], held_out: dict[str, Any]
) -> dict[str, Any]:
    return {
        "protocol": build_protocol(section, case_set.digest, len(case_set.cases)),
        "identity": summarise_identity(case_set.cases),
        "held_out": held_out,
        **summarise_rows(rows, section),
    }
