"""`imprint status`: what is served, what ran, what comes next, and what takes up the disk, on one screen."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.prefect_api import TIMEOUT_S, FlowRun, find_url, list_runs
from flows.registry import read_data_counts
from imprint.core.errors import InputError
from imprint.core.outside import load_yaml
from imprint.tracking.store import resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

SHARDS = "data/shards"
CACHES = {  # path => the command that frees it, and what that costs
    ".dvc/cache": ("dvc gc --workspace", "what is not used here now"),
    "work": ("rm -r work", "clips' products, checkpoints"),
    "mlruns": ("mlflow gc --backend-store-uri sqlite:///mlflow.db", "deleted runs"),
    ".prefect": ("make down; rm -r .prefect", "the runs' history"),
}
_STATE_STYLES = {"Completed": "green", "Failed": "red", "Crashed": "red", "Running": "cyan", "Cancelled": "yellow"}
_SHORT = 8  # characters of a digest


@dataclass(frozen=True)
class VersionLine:
    """One alias of the compositor. `metrics`: means under the screen's protocol, empty if it was not measured so."""

    alias: str
    version: str
    registered: str
    since: str
    gate: str
    metrics: Mapping[str, float]
    data: str
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Models:
    """`note`: why there is nothing to show, or what is missing."""

    lines: list[VersionLine] = field(default_factory=list)
    protocol: str = ""
    metrics: list[str] = field(default_factory=list)
    note: str = ""


def print_status(root: Path = Path("."), console: Console | None = None) -> None:
    """Print the screen. It changes nothing, and works where nothing has run yet."""
    start_s = time.monotonic()
    target = console or Console()
    with ThreadPoolExecutor() as pool:
        runs = pool.submit(list_runs, find_url())
        sizes = {name: pool.submit(measure_bytes, root / name) for name in CACHES}
        models = read_models(root)
        target.print(Text(f"IMPRINT  {root.resolve()}  {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", style="bold"))
        _print_models(target, models)
        _print_runs(target, runs)
        _print_data(target, root, models)
        _print_disk(target, {name: size.result() for name, size in sizes.items()})
    target.print(Text(f"\n({time.monotonic() - start_s:.1f} s)", style="dim"))


def read_models(root: Path) -> Models:
    """Champion, challenger and the champion's predecessor as the registry knows them; makes no registry."""
    uri = resolve_tracking_uri(root)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return Models(note="no model is registered yet: `make demo`, or `dvc repro` and `imprint register`")
    if uri.startswith("http") and not _answers(uri):
        return Models(note=f"MLflow at {uri} does not answer")
    from mlflow.exceptions import MlflowException

    from imprint.tracking.store import open_store

    try:
        return _read_registry(open_store(root)[0], root)
    except (MlflowException, OSError, InputError) as error:
        return Models(note=f"cannot be read: {str(error).splitlines()[0]}")


def measure_bytes(path: Path) -> int | None:
    """Size of all files below a folder that can be seen; None if there is none."""
    if not path.is_dir():
        return None
    total, waiting = 0, [str(path)]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    total += _measure_file(entry)
    return total


def _measure_file(entry: os.DirEntry) -> int:
    """Bytes; none of a file that has gone meanwhile: others are at work while the screen is made."""
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _read_registry(client: MlflowClient, root: Path) -> Models:
    from flows.gate import load_rules
    from flows.measurements import PROTOCOL_TAG
    from flows.registry import CHALLENGER, CHAMPION, COMPOSITOR, PREVIOUS, find_alias, get_version

    found = {alias: find_alias(client, COMPOSITOR.name, alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
    versions = {alias: get_version(client, COMPOSITOR.name, version) for alias, version in found.items() if version}
    protocol: str = next((one.tags[PROTOCOL_TAG] for one in versions.values() if PROTOCOL_TAG in one.tags), "")
    names = list(load_rules(root).metrics)
    lines = [
        _build_line(alias, version, _average(client, version, protocol, names=names, root=root))
        for alias, version in versions.items()
    ]
    note = "" if lines else "no version has an alias: `imprint register` makes a challenger"
    return Models(lines, protocol, names, note)


def _average(
    client: MlflowClient, version: ModelVersion, protocol: str, *, names: Sequence[str], root: Path
) -> dict[str, float]:
    """Means over cases and mask levels, as the gate compares them."""
    from flows.measurements import fetch_measurement

    measured = fetch_measurement(client, version, protocol=protocol, root=root) if protocol else None
    values = measured.values if measured else {}
    return {name: sum(values[name].values()) / len(values[name]) for name in names if values.get(name)}


def _build_line(alias: str, version: ModelVersion, metrics: Mapping[str, float]) -> VersionLine:
    from flows.promotion import GATE_TAG
    from flows.registry import DATA_COUNTS_TAG, DATA_TAG, SINCE_TAG

    tags = version.tags
    registered = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat()
    return VersionLine(
        alias=alias,
        version=str(version.version),
        registered=registered,
        since=tags.get(SINCE_TAG, ""),
        gate=" ".join(tags[f"{GATE_TAG}.{key}"] for key in ("outcome", "reason") if f"{GATE_TAG}.{key}" in tags),
        metrics=metrics,
        data=tags.get(DATA_TAG, ""),
        counts=json.loads(tags.get(DATA_COUNTS_TAG, "{}")),
    )


def _print_models(target: Console, models: Models) -> None:
    if models.note:
        target.print(Text(f"\nModels    {models.note}"))
        return
    table = _open_table(
        target, "Models", f"imprint-compositor; metrics: means under {models.protocol or 'no protocol yet'}"
    )
    table.add_column("")
    for line in models.lines:
        table.add_column(line.alias.replace("_", " "), justify="right")
    rows = {
        "version": [line.version for line in models.lines],
        "registered": [_format_time(line.registered) for line in models.lines],
        "promoted": [_format_time(line.since) or "-" for line in models.lines],
        "gate": [line.gate or "-" for line in models.lines],
    }
    for name in models.metrics:
        rows[name] = [f"{line.metrics[name]:.3f}" if name in line.metrics else "-" for line in models.lines]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    target.print(table)


def _print_runs(target: Console, runs: Future[tuple[list[FlowRun], list[FlowRun]]]) -> None:
    try:
        last, upcoming = runs.result()
    except (OSError, ValueError):
        target.print(
            Text(f"\nRuns      no Prefect server at {find_url()} (within {TIMEOUT_S} s); `make up` starts one")
        )
        return
    table = _open_table(target, "Runs", "" if last else "none yet")
    for title in ("flow", "state", "started (UTC)", "took"):
        table.add_column(title)
    for run in last:
        state = Text(run.state, style=_STATE_STYLES.get(run.state, ""))
        table.add_row(run.name, state, _format_time(run.start), f"{run.duration_s:.0f} s")
    target.print(table)
    first = {run.name: run for run in reversed(upcoming)}  # the soonest of each
    nexts = ", ".join(f"{name} at {_format_time(run.start)}" for name, run in reversed(first.items()))
    _print_labelled(target, "Next", nexts or "nothing is scheduled")


def _print_data(target: Console, root: Path, models: Models) -> None:
    shards = read_shards(root)
    if shards is None:
        target.print(Text("\nData      no shards yet: `make demo`, or `dvc repro pack_shards`"))
        return
    version = str(shards.get("md5", "")).removesuffix(".dir")
    size = f"{_format_bytes(shards.get('size', 0))} in {shards.get('nfiles', 1)} files"
    target.print()
    _print_labelled(target, "Data", f"{SHARDS} version {version[:_SHORT]}, {size}{_compare_data(version, models)}")
    counts = read_data_counts(root)
    trained = next((line.counts for line in models.lines if line.alias == "champion"), {})
    if counts:
        shown = [_format_growth(name, value, trained.get(name)) for name, value in counts.items()]
        _print_labelled(target, "", ", ".join(shown))


def read_shards(root: Path) -> dict[str, Any] | None:
    """What `dvc.lock` says of the shards (`md5`, `size`, `nfiles`); None before they were made."""
    path = root / "dvc.lock"
    if not path.is_file():
        return None
    stages = (load_yaml(path) or {}).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return next((out for out in outs if out.get("path") == SHARDS), None)


def _compare_data(version: str, models: Models) -> str:
    trained = next((line.data.removesuffix(".dir") for line in models.lines if line.alias == "champion"), "")
    if not trained:
        return ""
    return ", the champion's" if trained == version else f"; the champion was trained on {trained[:_SHORT]}"


def _format_growth(name: str, value: float, before: float | None) -> str:
    change = "" if before is None or before == value else f" ({value - before:+.0f} since the champion)"
    return f"{name.replace('_', ' ')} {value:.0f}{change}"


def _print_disk(target: Console, sizes: Mapping[str, int | None]) -> None:
    table = _open_table(target, "Disk")
    table.add_column("cache")
    table.add_column("size", justify="right")
    table.add_column("freed by", overflow="fold")
    table.add_column("removes")
    for name, size in sizes.items():
        table.add_row(name, "-" if size is None else _format_bytes(size), *CACHES[name])
    target.print(table)


def _open_table(target: Console, title: str, caption: str = "") -> Table:
    """An empty table, below its printed title."""
    target.print(Text.assemble("\n", (title, "bold"), (f"  {caption}" if caption else "", "dim")))
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _print_labelled(target: Console, label: str, text: str) -> None:
    """A paragraph beside its label, however narrow the screen."""
    row = Table.grid(padding=0)
    row.add_column(width=10)
    row.add_column()
    row.add_row(Text(label), Text(text))
    target.print(row)


def _format_time(text: str) -> str:
    return text[:16].replace("T", " ")


def _format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _answers(uri: str) -> bool:
    """Whether a server is there; MLflow's own client tries for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
