"""The metrics as tables in the terminal; `make demo` ends with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from imprint.evaluation.protocol import load_metrics

Cells = Mapping[str, float | None]  # metric => mean

METHOD_TITLES = {
    "ours": "compositor",
    "from_noise": "from noise",
    "paste": "alpha paste",
    "matched": "matched paste",
    "poisson": "Poisson",
}
COLUMNS = {
    "object_psnr_db": ("object PSNR dB", 1),
    "object_ssim": ("object SSIM", 3),
    "sharpness": ("sharpness", 2),
    "gradient_agreement": ("gradient agreement", 3),
    "outline_iou": ("outline IoU", 2),
    "identity_top1": ("identity top-1", 2),
    "copy_distance": ("copy distance", 1),
    "shadow_psnr_db": ("shadow PSNR dB", 1),
    "surround_psnr_db": ("surround PSNR dB", 1),
}
NO_BEST = ("copy_distance",)  # neither more nor less of it is better
PARTIAL = ("from_noise",)  # measured on fewer cases: its mean is of others, so it is neither best nor beaten
TREES = {
    "levels": ("Composites against the ground truth, by mask level; view change up to 45 degrees", "mask"),
    "view_changes": ("The same by view change; all mask levels", "degrees"),
}
_MIN_WIDTH = 136
STAGE_TITLES = {"pretrain_encoder": "1 object encoder", "train_compositor": "2 compositor"}


def print_table(metrics_path: Path, console: Console | None = None) -> None:
    """Print a metrics file: quality by mask level, view change and method, held-out losses. `InputError` if it is
    missing."""
    metrics = load_metrics(metrics_path)
    target = console or Console(width=max(Console().width, _MIN_WIDTH))
    print_quality(metrics, target)
    target.print(build_held_out_table(metrics))


def print_quality(metrics: dict[str, Any], console: Console | None = None) -> None:
    """The two tables of quality alone."""
    target = console or Console(width=max(Console().width, _MIN_WIDTH))
    for tree in TREES:
        target.print(build_quality_table(metrics, tree))


def build_quality_table(metrics: dict[str, Any], tree: str = "levels") -> Table:
    """One row per group of a tree (see TREES) and method; the best value of a group is bold."""
    title, head = TREES[tree]
    table = Table(title=title, caption=describe_protocol(metrics), box=SIMPLE_HEAD)
    table.add_column(head, no_wrap=True)
    table.add_column("method", no_wrap=True)
    for column, _ in COLUMNS.values():
        table.add_column(column, justify="right")
    for group, methods in metrics[tree].items():
        for number, method in enumerate(methods):
            cells = [_format_cell(method, methods, name) for name in COLUMNS]
            last = number == len(methods) - 1
            table.add_row(group if number == 0 else "", METHOD_TITLES[method], *cells, end_section=last)
    return table


def describe_protocol(metrics: dict[str, Any]) -> str:
    """What the numbers are of, and what identity could be."""
    protocol, identity = metrics["protocol"], metrics["identity"]
    near = identity["near_ceiling_top1"]
    best = "n/a" if near is None else f"{near:.2f}"
    return (
        f"{protocol['num_cases']} cases, protocol {protocol['name']}/{protocol['hash']}; sharpness: 1 is right; "
        f"identity: chance {identity['chance_top1']:.2f}, true pictures {identity['ceiling_top1']:.2f}, "
        f"up to 45 degrees {best}; copy distance: 0 is the pasted reference; n/a: not defined there"
    )


def format_markdown(metrics: dict[str, Any], tree: str = "levels") -> str:
    """The same as a table in Markdown, for README and notes."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| {TREES[tree][1]} | method | {' | '.join(titles)} |", f"|---|---|{'---:|' * len(titles)}"]
    for group, methods in metrics[tree].items():
        for method, values in methods.items():
            texts = {name: format_number(values[name], name) for name in COLUMNS}
            cells = [f"**{text}**" if is_best(method, methods, name) else text for name, text in texts.items()]
            lines.append(f"| {group} | {METHOD_TITLES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def is_best(method: str, methods: Mapping[str, Cells], name: str) -> bool:
    """Whether no other method of the group is better: has more, or of sharpness less deviation from 1."""
    measure, sign = ("log_sharpness", -1) if name == "sharpness" else (name, 1)
    own = methods[method][measure]
    if own is None or name in NO_BEST or method in PARTIAL:
        return False
    others = [cells[measure] for other, cells in methods.items() if other not in PARTIAL]
    return all(sign * own >= sign * cell for cell in others if cell is not None)


def _format_cell(method: str, methods: Mapping[str, Cells], name: str) -> str:
    text = format_number(methods[method][name], name)
    return f"[bold]{text}[/bold]" if is_best(method, methods, name) else text
