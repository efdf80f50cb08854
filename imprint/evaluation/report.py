"""The report folder: a page that stands alone with its pictures, the grid, one composite, and tables for plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprint.core.files import write_bytes_atomic
from imprint.core.pixels import save_image
from imprint.evaluation.cases import Case
from imprint.evaluation.charts import COLOURS, build_chart
from imprint.evaluation.composites import Composites
from imprint.evaluation.curves import CURVE_COLOURS, TITLES, Curve, draw_curves
from imprint.evaluation.measures import CHANGED_LEVELS, FLAT_LEVELS, MAX_PSNR_DB, MIN_REGION_PX
from imprint.evaluation.pictures import TILES, build_grid, save_strips
from imprint.evaluation.summary import CHECKS, METRICS, Row
from imprint.evaluation.table import COLUMNS, METHOD_TITLES, STAGE_TITLES, format_number, is_best

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_CHARTS = ("object_psnr_db", "object_ssim", "shadow_psnr_db", "surround_psnr_db", "identity_top1", "shape_iou")


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    *,
    rows: Sequence[Row],
    cases: Sequence[Case],
    composites: Composites,
    curves: Mapping[str, Mapping[str, Curve]],
    grid_rows: int,
) -> None:
    """Fill `folder`. The pictures show the first `grid_rows` cases in the archive's order, good or bad."""
    shown = list(cases[:grid_rows])
    save_strips(folder / "rows", shown, composites)
    save_image(folder / "grid.png", build_grid(shown, composites))
    last_level = list(composites)[-1]
    save_image(folder / "composite.png", composites[last_level]["ours"][0])
    header = ["case", "level", "method", *METRICS, *CHECKS]
    _write_csv(folder / "cases.csv", header, [_list_row(row) for row in rows], is_exact=True)
    means = [
        [f"{level}, {METHOD_TITLES[method]}", *(cells[name] for name in METRICS)]
        for level, methods in metrics["levels"].items()
        for method, cells in methods.items()
    ]
    _write_csv(folder / "plots" / "quality.csv", ["composite", *METRICS], means)
    for stage, losses in curves.items():
        for name, curve in losses.items():
            _write_csv(folder / "plots" / stage / f"{name}.csv", ["step", name], curve)
    page = render_page(metrics, rows=rows, names=[case.name for case in shown], curves=curves)
    write_bytes_atomic(folder / "index.html", page.encode())


def render_page(
    metrics: dict[str, Any],
    *,
    rows: Sequence[Row],
    names: Sequence[str],
    curves: Mapping[str, Mapping[str, Curve]],
) -> str:
    """The page as HTML; it refers to the pictures beside it by relative names."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text())
    identity = metrics["identity"]
    lines = {"chance": identity["chance_top1"], "true pictures": identity["ceiling_top1"]}
    charts = {name: build_chart(metrics, name, lines if name == "identity_top1" else None) for name in _CHARTS}
    return template.render(
        metrics=metrics,
        columns={name: title for name, (title, _) in COLUMNS.items()},
        methods=METHOD_TITLES,
        stages=STAGE_TITLES,
        colours=COLOURS,
        tiles=TILES,
        names=names,
        charts={name: Markup(svg) for name, svg in charts.items()},
        curves={stage: Markup(draw_curves(losses)) for stage, losses in curves.items() if losses},
        curve_titles=TITLES,
        curve_colours=CURVE_COLOURS,
        values={(row.case, row.level, row.method): row.values for row in rows},
        number=format_number,
        best=is_best,
        definitions={
            "min_region_px": MIN_REGION_PX,
            "max_psnr_db": MAX_PSNR_DB,
            "changed_levels": CHANGED_LEVELS,
            "flat_levels": FLAT_LEVELS,
        },
    )


def _list_row(row: Row) -> list[str | float | None]:
    return [row.case, row.level, row.method, *(row.values[name] for name in (*METRICS, *CHECKS))]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], *, is_exact: bool = False) -> None:
    """A missing value is an empty cell. Numbers have four decimals, or, where they are judged by, all of them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    write_number = repr if is_exact else "{:.4f}".format
    for row in rows:
        writer.writerow("" if v is None else write_number(float(v)) if isinstance(v, float) else v for v in row)
    write_bytes_atomic(path, text.getvalue().encode())
