"""One MLflow run, fed from a work folder's journal; by client calls only, so that it can live on a thread of its own.

`mlflow_run.json` beside the journal keeps what the run is about, its id, and how much of the journal MLflow has: an
entry is sent once, whichever process does it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.files import compute_path_digest, write_json_atomic
from imprint.core.outside import load_json
from imprint.tracking.journal import METRICS_FILE, Entry, measure_journal, read_journal
from imprint.tracking.provenance import read_git_tags, read_orchestration_tags
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_TAG = "imprint.digest"  # sha256 of an exported model's folder; the registry finds the run's weights by it
RECORD_FILE = "mlflow_run.json"
_MAX_DIGEST_CHARS = 36  # MLflow's limit for a data set's digest: a DVC folder's md5 just fits
_MAX_PARAMS_PER_BATCH = 100
_MAX_METRICS_PER_BATCH = 1000  # MLflow's limit
_HOPELESS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of a run: deleted for good, or for now


def describe_run(
    work_dir: Path, *, stage: str, key: str, params: Mapping[str, Any], inputs: Mapping[str, str], root: Path
) -> None:
    """Write down what the run is about; what is there already, of an earlier process, stays."""
    record = _load_record(work_dir)
    if "about" in record:
        return
    tags = {"imprint.key": key, **read_orchestration_tags(stage), **read_git_tags(root)}
    about = {"name": f"{stage}-{key[:8]}", "tags": tags, "params": dict(params), "inputs": dict(inputs)}
    write_json_atomic(work_dir / RECORD_FILE, record | {"about": about | {"start_ms": int(time.time() * 1000)}})


def count_unsent(work_dir: Path) -> int:
    """Entries that MLflow has not got; none of a run of before there were journals, which told it everything itself."""
    record = _load_record(work_dir)
    if "about" not in record:
        return 0
    return sum(1 for _ in read_journal(work_dir / METRICS_FILE, record.get("sent", 0)))


class MlflowRun:
    """Opens or continues the run in its constructor; both methods may raise what MLflow raises."""

    def __init__(self, work_dir: Path, root: Path) -> None:
        self._client, self._experiment_id = open_store(root)
        self._work_dir, self._journal = work_dir, work_dir / METRICS_FILE
        self._record = _load_record(work_dir)
        uri = resolve_tracking_uri(root)
        known = self._record.get("uri") == uri and _continue_run(self._client, self._record.get("run_id"))
        if not known:  # a new run, or the store was emptied, or it is another one
            about = self._record["about"]
            run = self._client.create_run(self._experiment_id, about["start_ms"], about["tags"], about["name"])
            self._save({"uri": uri, "run_id": run.info.run_id, "described": False, "sent": 0, "models": {}})
        self.run_id: str = self._record["run_id"]
        if not self._record["described"]:  # a step of its own: if it fails, the run is not made twice
            _describe(self._client, self.run_id, self._record["about"])
            self._save({"described": True})

    def send_next(self) -> bool:
        """Send the next entries of the journal; False if there are none."""
        batch: list[tuple[Entry, int]] = []
        num_metrics = 0
        for entry, end in read_journal(self._journal, self._record["sent"]):
            num_metrics += len(entry["metrics"]) if _is_metrics(entry) else _MAX_METRICS_PER_BATCH
            if batch and num_metrics > _MAX_METRICS_PER_BATCH:
                break
            batch.append((entry, end))
        if not batch:
            return False
        end = batch[-1][1]
        try:
            self._send([entry for entry, _ in batch], is_last=end == measure_journal(self._journal))
        except Exception as error:
            if not _is_hopeless(error):
                raise
            warn(f"does not take an entry, which is left out: {shorten(error)}")
        self._save({"sent": end})
        return True

    def _send(self, entries: list[Entry], *, is_last: bool) -> None:
        """Metrics in any number, or one entry of another kind."""
        entry = entries[0]
        if _is_metrics(entry):
            self._send_metrics(entries)
        elif "file" in entry:
            if not Path(entry["file"]).is_file():
                raise FileNotFoundError(f"{entry['file']} is gone")
            self._client.log_artifact(self.run_id, entry["file"], entry["folder"] or None)
        elif "model" in entry:
            self._send_model(entry)
        elif is_last:  # the end of a process that another one went on from is no end
            self._client.set_terminated(self.run_id, entry["status"], entry["time_ms"])

    def _send_metrics(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float("nan") if value is None else value, entry["time_ms"], entry["step"])
            for entry in entries
            for name, value in entry["metrics"].items()
        ]
        self._client.log_batch(self.run_id, metrics)

    def _send_model(self, entry: Entry) -> None:
        directory = Path(entry["directory"])
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is gone")
        digest = compute_path_digest(directory)
        if self._record["models"].get(entry["name"]) != digest:  # else a resumed run had come this far
            self._create_model(entry, directory, digest)
            self._save({"models": self._record["models"] | {entry["name"]: digest}})
        if entry["passing"]:
            shutil.rmtree(directory, ignore_errors=True)

    def _create_model(self, entry: Entry, directory: Path, digest: str) -> None:
        tags, params = {DIGEST_TAG: digest}, {"step": str(entry["step"])} if entry["step"] is not None else None
        model = self._client.create_logged_model(
            self._experiment_id, entry["name"], self.run_id, tags, params, model_type=entry["model"]
        )
        self._client.log_model_artifacts(model.model_id, str(directory))
        for key, value in entry["metrics"].items():
            self._client.log_metric(self.run_id, key, value, step=entry["step"] or 0, model_id=model.model_id)
        self._client.finalize_logged_model(model.model_id, "READY")

    def _save(self, changes: dict[str, Any]) -> None:
        self._record |= changes
        write_json_atomic(self._work_dir / RECORD_FILE, self._record)


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"warning: MLflow {message}", file=sys.stderr, flush=True)


def shorten(error: Exception) -> str:
    """An exception's text in one line."""
    return " ".join(str(error).split())[:300]


def _load_record(work_dir: Path) -> dict[str, Any]:
    path = work_dir / RECORD_FILE
    return load_json(path) if path.is_file() else {}


def _is_metrics(entry: Entry) -> bool:
    return "metrics" in entry and "model" not in entry


def _is_hopeless(error: Exception) -> bool:
    """Whether the same entry would fail again whenever it is sent."""
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", None) in _HOPELESS


def _continue_run(client: MlflowClient, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
        return False
    return True


def _describe(client: MlflowClient, run_id: str, about: Mapping[str, Any]) -> None:
    """Params and inputs of a run; may be done again."""
    from mlflow.entities import Param

    params = [Param(key, str(value)) for key, value in flatten(about["params"]).items()]
    for start in range(0, len(params), _MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS_PER_BATCH])
    client.log_inputs(run_id, [_build_input(path, digest) for path, digest in sorted(about["inputs"].items())])


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
