"""A compositor as it is shipped: float16 safetensors, each part in a file of its own, and a model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from imprint.core.errors import InputError
from imprint.core.files import publish_dir, write_bytes_atomic, write_json_atomic
from imprint.core.pixels import load_image, save_image
from imprint.evaluation.goals import describe_world, format_goals
from imprint.evaluation.table import format_markdown
from imprint.models import load_card, load_model, save_model
from imprint.models.provenance import list_sources

MAX_FILE_BYTES, MAX_BYTES = 16_000_000, 40_000_000
ROUNDS = "rounds"  # key of a shipped model's card
_KEPT = ("encoder_digests", "condition_on_level", "sources", "steps")  # of the compositor's own card


def export_base(
    source: Path,
    target: Path,
    *,
    rounds: Sequence[Mapping[str, str]],
    metrics: Mapping[str, Any],
    sheets: Sequence[Path],
) -> None:
    """Write the compositor in `source` to `target`, replacing it: weights, scheduler, `metrics.json`, `README.md`, and
    the pictures `sheets` as JPEG. `rounds`: how each training so far was made; a later one starts from its checkpoint.

    `InputError` if a file or the whole would be too large to live in a Git repository.
    """
    model, card = load_model(source), load_card(source)
    kept = {key: card[key] for key in _KEPT if key in card} | {ROUNDS: [dict(facts) for facts in rounds]}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        save_model(model, scratch, stage=card["stage"], extra=kept, half_precision=True)
        shutil.copytree(source / "scheduler", scratch / "scheduler")
        write_json_atomic(scratch / "metrics.json", dict(metrics))
        for sheet in sheets:
            save_image(scratch / f"{sheet.stem}.jpg", load_image(sheet))
        parameters = {part: count_parameters(getattr(model, part)) for part in model.parts}
        text = render_card(
            preset=model.preset.name,
            parameters=parameters,
            rounds=rounds,
            metrics=metrics,
            sources=list_sources(source, source.name),
        )
        write_bytes_atomic(scratch / "README.md", text.encode())
        check_size(scratch)
        publish_dir(scratch, target)


def render_card(
    *,
    preset: str,
    parameters: Mapping[str, int],
    rounds: Sequence[Mapping[str, str]],
    metrics: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
) -> str:
    """The model card's Markdown; every number in it comes from the arguments."""
    environment = Environment(
        loader=PackageLoader("imprint.base", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("card.md.j2")
    world = describe_world(dict(metrics))
    tables = {"goals": format_goals(world), "view_changes": format_markdown(world, "view_changes")}
    return template.render(
        preset=preset, parameters=parameters, rounds=rounds, metrics=metrics, sources=sources, **tables
    )


def count_parameters(module: Any) -> int:
    """How many numbers a module has learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_size(directory: Path) -> None:
    """`InputError` that names the culprit."""
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    largest = max(sizes, key=lambda path: sizes[path])
    if sizes[largest] > MAX_FILE_BYTES:
        raise InputError(
            f"{largest.name} has {sizes[largest]:,} bytes, more than {MAX_FILE_BYTES:,}; use a smaller preset"
        )
    if sum(sizes.values()) > MAX_BYTES:
        raise InputError(
            f"the checkpoint has {sum(sizes.values()):,} bytes, more than {MAX_BYTES:,}; use a smaller preset"
        )
