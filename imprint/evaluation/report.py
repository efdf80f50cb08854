"""The report folder: a page that stands alone with its pictures, the grid, one composite, and tables for plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imprint.core.files import write_bytes_atomic
from imprint.core.pixels import save_image
from imprint.evaluation.charts import COLOURS, build_chart
from imprint.evaluation.curves import CURVE_COLOURS, TITLES, Curve, draw_curves
from imprint.evaluation.gradients import MIN_GRADIENT
from imprint.evaluation.measures import CHANGED_LEVELS, FLAT_LEVELS, MAX_PSNR_DB, MIN_REGION_PX
from imprint.evaluation.measuring import Shown
from imprint.evaluation.pictures import TILES, Pair, build_grid, choose_shown, save_strips
from imprint.evaluation.summary import CHECKS, METRICS, Row
from imprint.evaluation.table import COLUMNS, METHOD_TITLES, STAGE_TITLES, TREES, format_number, is_best

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_CHARTS = (
    "object_psnr_db",
    "sharpness",
    "gradient_agreement",
    "outline_iou",
    "identity_top1",
    "copy_distance",
    "shadow_psnr_db",
    "surround_psnr_db",
)
_KEYS = ["case", "view_change", "level", "method"]


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    *,
    rows: Sequence[Row],
    shown: Shown,
    curves: Mapping[str, Mapping[str, Curve]],
    grid_rows: int,
) -> None:
    """Fill `folder`. The pictures show the first `grid_rows` pairs of case and view change in the archive's order, good
    or bad."""
    trials, composites = shown.trials, shown.composites
    pairs = choose_shown(trials, grid_rows)
    save_strips(folder / "rows", trials, composites, pairs)
    save_image(folder / "grid.png", build_grid(trials, composites, pairs))
    save_image(folder / "composite.png", _choose_composite(shown))
    _write_csv(folder / "cases.csv", [*_KEYS, *METRICS, *CHECKS], [_list_row(row) for row in rows], is_exact=True)
    for tree in TREES:
        _write_csv(folder / "plots" / f"{tree}.csv", ["composite", *METRICS], _list_means(metrics[tree]))
    for stage, losses in curves.items():
        for name, curve in losses.items():
            _write_csv(folder / "plots" / stage / f"{name}.csv", ["step", name], curve)
    page = render_page(metrics, rows=rows, pairs=pairs, curves=curves)
    write_bytes_atomic(folder / "index.html", page.encode())


def _choose_composite(shown: Shown) -> np.ndarray:
    """Of the first case, at its nearest view and the coarsest level."""
    places = [number for number, trial in enumerate(shown.trials) if trial.place == 0]
    first = [number for number in places if shown.trials[number].view_change == shown.trials[places[0]].view_change]
    made = shown.composites["ours"][first[-1]]
    assert made is not None
    return made.picture


def _list_means(groups: dict[str, Any]) -> list[list[Any]]:
    return [
        [f"{group}, {METHOD_TITLES[method]}", *(cells[name] for name in METRICS)]
        for group, methods in groups.items()
        for method, cells in methods.items()
    ]


def render_page(
    metrics: dict[str, Any],
    *,
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    curves: Mapping[str, Mapping[str, Curve]],
) -> str:
    """The page as HTML; it refers to the pictures beside it by relative names."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text())
    identity = metrics["identity"]
    lines = {
        "identity_top1": {"chance": identity["chance_top1"], "true pictures": identity["ceiling_top1"]},
        "sharpness": {"right": 1.0},
    }
    charts = {
        tree: {name: Markup(build_chart(metrics, name, tree, lines.get(name))) for name in _CHARTS} for tree in TREES
    }
    return template.render(
        metrics=metrics,
        columns={name: title for name, (title, _) in COLUMNS.items()},
        methods=METHOD_TITLES,
        stages=STAGE_TITLES,
        colours=COLOURS,
        tiles=TILES,
        pairs=pairs,
        trees=TREES,
        charts=charts,
        curves={stage: Markup(draw_curves(losses)) for stage, losses in curves.items() if losses},
        curve_titles=TITLES,
        curve_colours=CURVE_COLOURS,
        values={(row.case, row.view_change, row.level, row.method): row.values for row in rows},
        number=format_number,
        best=is_best,
        definitions={
            "min_region_px": MIN_REGION_PX,
            "max_psnr_db": MAX_PSNR_DB,
            "changed_levels": CHANGED_LEVELS,
            "flat_levels": FLAT_LEVELS,
            "min_gradient": MIN_GRADIENT,
        },
    )


def _list_row(row: Row) -> list[str | float | None]:
    return [row.case, row.view_change, row.level, row.method, *(row.values[name] for name in (*METRICS, *CHECKS))]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], *, is_exact: bool = False) -> None:
    """A missing value is an empty cell. Numbers have four decimals, or, where they are judged by, all of them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    write_number = repr if is_exact else "{:.4f}".format
    for row in rows:
        writer.writerow("" if v is None else write_number(float(v)) if isinstance(v, float) else v for v in row)
    write_bytes_atomic(path, text.getvalue().encode())
