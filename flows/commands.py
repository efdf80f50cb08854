"""Bodies of the `imprint` commands that are neither the demo nor a stage."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imprint.core.errors import InputError


def run_flow(name: str, dask_address: str | None = None) -> None:
    """Run a named flow in this process, its chunks on the Dask cluster if one is named. `InputError` without a server:
    the temporary one that Prefect would start hangs after Ctrl-C."""
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "PREFECT_API_URL is not set; start a server with `prefect server start` and export "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, or run `dvc repro`, which needs none"
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


def print_models(root: Path) -> None:
    """A table of all versions, the newest first."""
    from flows.registry import SERVABLES, list_versions
    from imprint.tracking.mlflow_run import DIGEST_TAG
    from imprint.tracking.store import open_store

    client, _ = open_store(root)
    table = Table("model", "version", "aliases", "digest")
    for servable in SERVABLES:
        for version in list_versions(client, servable.name):
            digest = version.tags.get(DIGEST_TAG, "")[:12]
            table.add_row(servable.name, str(version.version), " ".join(version.aliases), digest)
    Console().print(table)
