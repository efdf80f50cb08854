"""How good a registered version is, kept with it in MLflow: the gate needs no file of the folder that trained it.

A measurement is two files as stage `evaluate` writes them, `evaluation.json` and `cases.csv`, under
`evaluation/<protocol's hash>/` in the artifacts of the version's logged model: one version may have several.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.gate import Cell, Measurement
from imprint.core.errors import InputError
from imprint.core.outside import load_json
from imprint.inference.registered import find_location
from imprint.tracking.mlflow_run import DIGEST_TAG, flatten
from imprint.tracking.store import resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

METRICS = Path("metrics/evaluation.json")
CASES = Path("reports/evaluation/cases.csv")
PROTOCOL_TAG = "imprint.protocol"  # the one that it was measured under last
PROBLEM_TAG = "imprint.evaluation_problem"  # why it has no measurement
METHOD = "ours"
_FOLDER = "evaluation"
_KEYS = ("case", "view_change", "level", "method")


def attach_evaluation(client: MlflowClient, version: ModelVersion, root: Path) -> None:
    """Keep the project's own evaluation with a version; if it is of other weights, keep that as the problem."""
    problem = find_problem(root, version.tags[DIGEST_TAG])
    if not problem:
        attach_measurement(client, version, root / METRICS, root / CASES)
    elif PROTOCOL_TAG not in version.tags:
        client.set_model_version_tag(version.name, version.version, PROBLEM_TAG, problem)


def find_problem(root: Path, digest: str) -> str:
    """Why the evaluation in `root` does not speak for the weights of this digest; empty if it does."""
    if not (root / METRICS).is_file() or not (root / CASES).is_file():
        return "its evaluation failed or did not run"
    try:
        model = json.loads((root / METRICS).read_text()).get("model", "")
        load_measurement(root / METRICS, root / CASES)
    except (json.JSONDecodeError, InputError) as error:
        return f"its evaluation cannot be read ({error})"
    return "" if model and digest.startswith(model) else f"the last evaluation is of other weights ({model or 'none'})"


def attach_measurement(client: MlflowClient, version: ModelVersion, metrics: Path, cases: Path) -> Measurement:
    """Upload both files, and the numbers as metrics of the version's model if it has none yet: MLflow's charts must
    not mix protocols. Files first, the tag that makes them count last."""
    measurement = load_measurement(metrics, cases)
    if version.tags.get(PROTOCOL_TAG) == measurement.protocol:
        return measurement
    model_id = _get_model_id(version)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(metrics, Path(folder) / "evaluation.json")
        shutil.copy(cases, Path(folder) / "cases.csv")
        client.log_model_artifacts(model_id, folder, _locate(measurement.protocol))
    if not client.get_logged_model(model_id).metrics:
        _log_metrics(client, version, model_id, load_json(metrics))
    client.set_model_version_tag(version.name, version.version, PROTOCOL_TAG, measurement.protocol)
    return measurement


def fetch_measurement(
    client: MlflowClient, version: ModelVersion, *, protocol: str | None = None, root: Path = Path(".")
) -> Measurement | None:
    """A version's measurement under `protocol` (default: its last one); None if it has none."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    protocol = protocol or version.tags.get(PROTOCOL_TAG)
    if protocol is None:
        return None
    uri = f"{find_location(client, version)}/{_locate(protocol)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            local = download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=resolve_tracking_uri(root))
        except (MlflowException, OSError):
            return None
        return load_measurement(Path(local) / "evaluation.json", Path(local) / "cases.csv")


def load_measurement(metrics: Path, cases: Path) -> Measurement:
    """Read the two files; `InputError` if they are no evaluation. A cell that is no number becomes NaN."""
    protocol = load_json(metrics).get("protocol", {})
    if not {"name", "hash"} <= set(protocol):
        raise InputError(f"{metrics} carries no protocol; run `dvc repro evaluate` again")
    with cases.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("method") == METHOD]
    names = [name for name in (rows[0] if rows else {}) if name not in _KEYS]
    values = {name: {_get_cell(row): _to_float(row[name]) for row in rows if row[name]} for name in names}
    if not values:
        raise InputError(f"{cases} has no rows of the model's; run `dvc repro evaluate` again")
    return Measurement(f"{protocol['name']}/{protocol['hash']}", values)


def _get_cell(row: dict[str, str]) -> Cell:
    """Measurements from before there were view changes have none; their protocol is another one anyway."""
    return row["case"], f"{row.get('view_change', '')} {row['level']}".strip()


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _locate(protocol: str) -> str:
    return f"{_FOLDER}/{protocol.rpartition('/')[2]}"


def _get_model_id(version: ModelVersion) -> str:
    source = version.source or ""
    assert source.startswith("models:/"), f"{version.name} {version.version} is no logged model"
    return source.removeprefix("models:/")


def _log_metrics(client: MlflowClient, version: ModelVersion, model_id: str, metrics: dict[str, Any]) -> None:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    numbers = {key: value for key, value in flatten(metrics).items() if type(value) in (int, float)}
    batch = [Metric(key, float(value), now_ms, 0, model_id=model_id) for key, value in numbers.items()]
    assert version.run_id is not None, f"{version.name} {version.version} was registered without a run"
    client.log_batch(version.run_id, metrics=batch)
