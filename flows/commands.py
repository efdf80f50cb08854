"""Bodies of the `imprint` commands that are neither the demo nor a stage."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imprint.core.errors import InputError


def run_flow(name: str, dask_address: str | None = None) -> None:
    """Run a named flow in this process, its chunks on the Dask cluster if one is named. `InputError` without a server:
    the temporary one that Prefect would start hangs after Ctrl-C."""
    if not os.environ.get("PREFECT_API_URL"):
        from flows.servers import find_environment

        os.environ.update(find_environment(Path(".")))
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "there is no Prefect server: `make up` starts one, PREFECT_API_URL names another; `dvc repro` needs none"
        )
    from flows import pipelines

    flows = {
        "prepare-data": pipelines.prepare_data,
        "pretrain-encoder": pipelines.pretrain_encoder,
        "train-compositor": pipelines.train_compositor,
        "evaluate": pipelines.evaluate,
        "all": pipelines.imprint_pipeline,
    }
    if name not in flows:
        raise InputError(f"flow {name} is unknown; use one of {', '.join(flows)}")
    if not dask_address:
        flows[name]()
    elif name in ("prepare-data", "all"):
        flows[name](dask_address=dask_address)
    else:
        raise InputError(f"--dask: flow {name} does not work on clips; use it with prepare-data or all")


def start_servers(root: Path, *, prefect_port: int, mlflow_port: int) -> None:
    """Start them and say where they are, and what a shell needs to reach them."""
    from flows.servers import up

    environment = up(root, prefect_port=prefect_port, mlflow_port=mlflow_port)
    api_url = environment["PREFECT_API_URL"]
    print(f"Prefect  {api_url.removesuffix('/api')}\nAPI      {api_url}\nMLflow   {environment['MLFLOW_TRACKING_URI']}")
    names = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
    print("For this shell:\n  export " + " ".join(f"{name}={shlex.quote(environment[name])}" for name in names))


def print_models(root: Path, console: Console | None = None) -> None:
    """A table of all versions, the newest first."""
    from flows.registry import PAIR_TAG, SERVABLES, list_versions
    from imprint.tracking.mlflow_run import DIGEST_TAG
    from imprint.tracking.store import open_store

    client, _ = open_store(root)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("model", "version", "aliases", "digest", "encoder", "gate"):
        table.add_column(title, no_wrap=title in ("model", "aliases"))
    for servable in SERVABLES:
        for version in list_versions(client, servable.name):
            digest = version.tags.get(DIGEST_TAG, "")[:8]
            verdict = " ".join(version.tags.get(f"imprint.gate.{key}", "") for key in ("outcome", "reason"))
            pair = version.tags.get(PAIR_TAG, "")[:8]
            table.add_row(servable.name, str(version.version), " ".join(version.aliases), digest, pair, verdict.strip())
    (console or Console()).print(table)


def run_gate_here(root: Path, *, remeasure: bool, promote_it: bool) -> None:
    """Run the gate, say what came of it, and promote if that is asked for."""
    from flows.gate_report import REPORT, VERDICTS
    from flows.promotion import promote_as_decided, run_gate
    from flows.registry import COMPOSITOR

    decision = run_gate(root, remeasure=remeasure)
    table = Table("metric", "champion", "challenger", "change", "interval", "verdict")
    for metric in decision.metrics:
        numbers = [metric.champion, metric.challenger, metric.change, metric.low, metric.high]
        if None in numbers:
            table.add_row(metric.name, "", "", "", "", VERDICTS[metric.verdict])
            continue
        first, second, change, low, high = (f"{number:+.4f}" for number in numbers)
        table.add_row(metric.name, first[1:], second[1:], change, f"{low} .. {high}", VERDICTS[metric.verdict])
    for limit in decision.limits:
        table.add_row(limit.name, "", str(limit.value), "", "", "limit kept" if limit.kept else "limit broken")
    if table.rows:
        Console().print(table)
    print(decision.describe())
    print(f"Page: {(root / REPORT / 'index.html').resolve()}")
    if promote_it and decision.promote:
        given = {"decision": decision.compute_digest(), "reason": f"gate: {decision.explanation}", "root": root}
        obstacle = promote_as_decided(COMPOSITOR.name, decision.challenger_version, **given)
        print(obstacle or f"{COMPOSITOR.name}: version {decision.challenger_version} is champion")


def evaluate_version_here(name: str, version: str, root: Path) -> None:
    """Measure a registered version and show its numbers."""
    from flows.promotion import VERSIONS, evaluate_version
    from imprint.evaluation.table import print_quality

    metrics = evaluate_version(name, version, root)
    print_quality(metrics)
    print(f"Page: {(root / VERSIONS / f'{name}-{version}' / 'index.html').resolve()}")
