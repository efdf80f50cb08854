"""Stage `report_data`: what is in the data set, to be looked at and to be compared with the version before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_prep.decisions import DECISIONS
from data_prep.gallery import FRAMES, MASKS
from data_prep.report.changes import METRICS, compare_versions, find_last_version, remember_version
from data_prep.report.dataset import (
    CLIPS,
    LEDGERS,
    PAIRS,
    SHARDS,
    SPLITS_RECORD,
    DataSet,
    compute_metrics,
    load_data_set,
)
from data_prep.report.page import render_page
from data_prep.report.pictures import save_left_out, save_pairs, save_tracks
from imprint.core.files import publish_dir, write_bytes_atomic, write_json_atomic
from imprint.core.params import Params, ReportData
from imprint.core.stage import open_stage

REPORT = Path("reports/data")


def run_report_data(params: Params, root: Path = Path(".")) -> None:
    """Write `metrics/data.json` and `reports/data/`: the page and its pictures."""
    section = params.report_data
    inputs = [CLIPS, FRAMES, MASKS, PAIRS, *LEDGERS, SPLITS_RECORD, SHARDS]
    run = open_stage(
        "report_data", section, [path for path in [*inputs, DECISIONS] if (root / path).exists()], __name__, root
    )
    data = load_data_set(root)
    metrics = compute_metrics(data)
    report = run.work_dir / "report"
    shutil.rmtree(report, ignore_errors=True)
    last = write_report(data, metrics, params=section, folder=report, root=root)
    publish_dir(report, root / REPORT)
    write_json_atomic(root / METRICS, metrics)
    remember_version(metrics, last, root)
    shutil.rmtree(run.work_dir)


def write_report(
    data: DataSet, metrics: dict[str, Any], *, params: ReportData, folder: Path, root: Path
) -> dict[str, Any] | None:
    """Fill `folder`; returns the metrics of the version that the page compares with."""
    last, origin = find_last_version(metrics, root) or (None, "")
    pictures = folder / "pictures"
    page = render_page(
        data,
        metrics,
        tracks=save_tracks(data, params, pictures),
        pairs=save_pairs(data, params, pictures),
        left_out=save_left_out(data, params, pictures),
        changes=compare_versions(last, metrics) if last else None,
        origin=origin,
    )
    write_bytes_atomic(folder / "index.html", page.encode())
    return last
