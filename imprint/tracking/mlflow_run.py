"""One MLflow run, by client calls only: no global active run, so that it can live on a thread of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.files import compute_path_digest, write_json_atomic
from imprint.tracking.provenance import read_git_tags, read_orchestration_tags
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "imprint.digest"  # sha256 of an exported model's folder; the registry finds the run's weights by it
_MAX_DIGEST_CHARS = 36  # MLflow's limit for a data set's digest: a DVC folder's md5 just fits
_MAX_PARAMS_PER_BATCH = 100


@dataclass(frozen=True)
class RunSpec:
    """What a run is about; `record` keeps the MLflow id, so that the same work folder continues the same run."""

    stage: str
    key: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    root: Path
    record: Path


class MlflowRun:
    """Opens or continues the run in its constructor; every method may raise what MLflow raises."""

    def __init__(self, spec: RunSpec) -> None:
        self._client, self._experiment_id = open_store(spec.root)
        self._record_path = spec.record
        self._record = _read_record(spec.record, resolve_tracking_uri(spec.root))
        self._models: dict[str, str] = self._record.setdefault("models", {})
        if not _continue_run(self._client, self._record.get("run_id")):
            self._record["run_id"] = _create_run(self._client, self._experiment_id, spec)
            self._models.clear()
            self._save_record()
        self.run_id: str = self._record["run_id"]

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self.run_id, [Metric(key, value, time_ms, step) for key, value in metrics.items()])

    def log_file(self, path: Path, folder: str) -> None:
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_model(self, kind: str, directory: Path, metrics: Mapping[str, float]) -> None:
        digest = compute_path_digest(directory)
        if self._models.get(kind) == digest:  # a resumed run that had come this far
            return
        tags = {DIGEST_TAG: digest}
        model = self._client.create_logged_model(
            self._experiment_id, f"{kind}-weights", self.run_id, tags, model_type=kind
        )
        self._client.log_model_artifacts(model.model_id, str(directory))
        for key, value in metrics.items():
            self._client.log_metric(self.run_id, key, value, model_id=model.model_id)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._models[kind] = digest
        self._save_record()

    def finish(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def _save_record(self) -> None:
        write_json_atomic(self._record_path, self._record)


def _read_record(path: Path, uri: str) -> dict[str, Any]:
    """The record of an earlier process, unless it belongs to another store."""
    record = json.loads(path.read_text()) if path.is_file() else {}
    return record if record.get("uri") == uri else {"uri": uri}


def _continue_run(client: MlflowClient, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException:  # the store was emptied since
        return False
    return True


def _create_run(client: MlflowClient, experiment_id: str, spec: RunSpec) -> str:
    from mlflow.entities import Param

    tags = {"imprint.key": spec.key, **read_orchestration_tags(spec.stage), **read_git_tags(spec.root)}
    run_id = client.create_run(experiment_id, int(time.time() * 1000), tags, f"{spec.stage}-{spec.key[:8]}").info.run_id
    params = [Param(key, str(value)) for key, value in flatten(spec.params).items()]
    for start in range(0, len(params), _MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_PER_BATCH])
    client.log_inputs(run_id, [_build_input(path, digest) for path, digest in sorted(spec.inputs.items())])
    return run_id


def _build_input(path: str, digest: str) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = CodeDatasetSource(tags={"dvc.path": path, "dvc.md5": digest})
    dataset = MetaDataset(source, name=path, digest=digest[:_MAX_DIGEST_CHARS])
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", "input")])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
