"""The metrics as a table in the terminal; `make demo` ends with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from imprint.evaluation.protocol import load_metrics

METHOD_TITLES = {"ours": "compositor", "paste": "alpha paste", "poisson": "Poisson"}
COLUMNS = {
    "object_psnr_db": ("object PSNR dB", 1),
    "object_ssim": ("object SSIM", 3),
    "shadow_psnr_db": ("shadow PSNR dB", 1),
    "shadow_ssim": ("shadow SSIM", 3),
    "surround_psnr_db": ("surround PSNR dB", 1),
    "surround_ssim": ("surround SSIM", 3),
    "identity_top1": ("identity top-1", 2),
    "shape_iou": ("shape IoU", 2),
}
_MIN_WIDTH = 112
STAGE_TITLES = {"pretrain_encoder": "1 object encoder", "train_compositor": "2 compositor"}


def print_table(metrics_path: Path, console: Console | None = None) -> None:
    """Print a metrics file: quality per mask level and method, held-out losses. `InputError` if it is missing."""
    metrics = load_metrics(metrics_path)
    target = console or Console(width=max(Console().width, _MIN_WIDTH))
    target.print(build_quality_table(metrics))
    target.print(build_held_out_table(metrics))


def build_quality_table(metrics: dict[str, Any]) -> Table:
    """One row per level and method; the best value of a level is bold."""
    protocol, identity = metrics["protocol"], metrics["identity"]
    caption = (
        f"{protocol['num_cases']} cases, protocol {protocol['name']}/{protocol['hash']}; identity: chance "
        f"{identity['chance_top1']:.2f}, true pictures {identity['ceiling_top1']:.2f}; n/a: no such pixels in the hole"
    )
    table = Table(title="Composites against the ground truth, by mask level", caption=caption, box=SIMPLE_HEAD)
    table.add_column("mask", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for level, methods in metrics["levels"].items():
        for number, (method, values) in enumerate(methods.items()):
            cells = [_format_cell(values[name], methods, name) for name in COLUMNS]
            last = number == len(methods) - 1
            table.add_row(level if number == 0 else "", METHOD_TITLES[method], *cells, end_section=last)
    return table


def build_held_out_table(metrics: dict[str, Any]) -> Table:
    """One row per training stage: does the right reference help on objects that were never trained on?"""
    caption = "gain: shuffled minus right, 95 % bootstrap over clips; above zero, the model uses the object it is shown"
    table = Table(title="Denoising loss on held-out pairs", caption=caption, box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    for title in ("pairs", "right reference", "shuffled reference", "gain", "95 % interval"):
        table.add_column(title, justify="right")
    for stage, title in STAGE_TITLES.items():
        loss = metrics["held_out"][stage]
        interval = f"{loss['gain_low']:+.5f} .. {loss['gain_high']:+.5f}"
        numbers = [f"{loss[name]:.5f}" for name in ("right_loss", "shuffled_loss")]
        table.add_row(title, str(loss["num_pairs"]), *numbers, f"{loss['gain']:+.5f}", interval)
    return table


def format_number(value: float | None, name: str) -> str:
    """A metric's value with its number of digits; `n/a` for None."""
    return "n/a" if value is None else f"{value:.{COLUMNS[name][1]}f}"


def is_best(value: float | None, methods: dict[str, dict[str, float | None]], name: str) -> bool:
    """Whether no method of the level has a larger value (larger is better for all of COLUMNS)."""
    others = [values[name] for values in methods.values()]
    return value is not None and value >= max(other for other in others if other is not None)


def _format_cell(value: float | None, methods: dict[str, dict[str, float | None]], name: str) -> str:
    text = format_number(value, name)
    return f"[bold]{text}[/bold]" if is_best(value, methods, name) else text
