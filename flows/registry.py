"""MLflow's model registry: versions by content, aliases. Works from the files in `models/`, with or without a live run.

Registering twice is registering once: a version carries the digest of the exported folder. The registry is as trusted
as its writers; whoever serves a model can compare that digest with the files.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.measurements import attach_evaluation
from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_path_digest
from imprint.core.keys import PACKAGES_ROOT
from imprint.core.outside import load_json
from imprint.core.stage import read_dvc_digests
from imprint.inference.registered import REGISTERING
from imprint.tracking.mlflow_run import DIGEST_TAG, flatten
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous_champion"  # aliases
CHAMPION_TAG = "imprint.champion"  # of the registered model: the version that the alias was last moved to
PREVIOUS_TAG = "imprint.previous_champion"
REASON_TAG, SINCE_TAG = "imprint.promotion.reason", "imprint.promotion.time"
PAIR_TAG = "imprint.encoder"  # equal on a compositor and on the encoder that it was trained on
DATA_TAG = "imprint.data"  # DVC's md5 of the shards that it was trained on
DATA_COUNTS_TAG = "imprint.data_counts"
METRICS_FILE = "metrics/evaluation.json"
DATA_METRICS_FILE = "metrics/data.json"
SHARDS = "data/shards"
CARD_FILE = "imprint.json"
_SERVING = PACKAGES_ROOT / "imprint" / "serving"
_REQUIREMENTS = (  # of a served model, pinned to what is installed
    *("mlflow", "torch", "diffusers", "transformers", "safetensors", "jaxtyping", "numpy", "pandas", "pyarrow"),
    *("opencv-python", "pydantic", "PyYAML", "rich", "rembg", "onnxruntime"),
)


@dataclass(frozen=True)
class Servable:
    """A registered model: its name, the folder it comes from, its code and what it reads and answers.

    `logged_folder`: the weights that the training run logged, by which its run is found.
    """

    name: str
    folder: str
    logged_folder: str
    code: str
    inputs: tuple[str, ...]
    output: str
    params: Mapping[str, tuple[str, Any]]  # name => MLflow type, default


ENCODER = Servable(
    "imprint-encoder", "models/encoder", "models/pretrained", "encoder_model.py", ("object",), "tokens", {}
)
COMPOSITOR = Servable(
    "imprint-compositor",
    "models/compositor",
    "models/compositor",
    "compositor_model.py",
    ("object", "background", "mask"),
    "image",
    {
        "steps": ("integer", 0),  # 0: the model's own, as for the next two
        "guidance": ("double", 0.0),
        "draws": ("integer", 0),
        "seed": ("integer", 0),
        "mask_level": ("string", "box"),
        "strength": ("double", -1.0),  # below 0: the model's own
        "mode": ("string", ""),  # empty: the model's own
        "shadow_reach": ("double", 0.0),
    },
)
SERVABLES = (ENCODER, COMPOSITOR)


@dataclass(frozen=True)
class Registration:
    """`created`: false if this very content had been registered before. `champion`: None if there is none."""

    name: str
    version: str
    digest: str
    created: bool
    champion: str | None

    def describe(self) -> str:
        """One line for people."""
        verb = "registered as" if self.created else "is registered already as"
        champion = f"champion: version {self.champion}" if self.champion else "no champion yet"
        return f"{self.name} {verb} version {self.version} ({champion})"


def register_all(root: Path = Path(".")) -> list[Registration]:
    """Register both models of the project at `root`; the first pair that there ever is becomes champion."""
    registered = register_pair(root)
    client, _ = open_store(root)
    if not any(remembers_champion(client, servable.name) for servable in SERVABLES):
        versions = {registration.name: registration.version for registration in registered}
        move_champion(client, versions, reason="the first version")
    return [replace(one, champion=find_alias(client, one.name, CHAMPION)) for one in registered]


def register_pair(root: Path = Path(".")) -> list[Registration]:
    """Register encoder and compositor, which must belong together, and make them `challenger` unless the compositor is
    the champion already."""
    keys = {servable.folder: read_pair_key(_require_folder(root, servable)) for servable in SERVABLES}
    if len(set(keys.values())) > 1:
        raise InputError(f"{COMPOSITOR.folder} was trained on another encoder than {ENCODER.folder}; run `dvc repro`")
    registered = [register_model(servable, root) for servable in SERVABLES]
    compositor = registered[-1]
    if compositor.version != compositor.champion:
        client, _ = open_store(root)
        versions = {one.name: one.version for one in registered if one.version != one.champion}
        move_aliases(client, versions, alias=CHALLENGER, tags={})
    return registered


def register_model(servable: Servable, root: Path = Path(".")) -> Registration:
    """Register what lies in `models/` unless its content has a version already. No alias moves."""
    folder = _require_folder(root, servable)
    pair = read_pair_key(folder)
    client, _ = open_store(root)
    digest = compute_path_digest(folder)
    with _lock_registration(root):
        version = find_version(client, servable.name, digest)
        created = version is None
        if version is None:
            version = _create_version(client, servable, digest=digest, root=root)
            version, created = settle_version(client, servable.name, digest=digest, version=version)
    if not created:  # a release that knew no pairs may have registered it
        client.set_model_version_tag(servable.name, version, PAIR_TAG, pair)
    if servable is COMPOSITOR:
        attach_evaluation(client, get_version(client, servable.name, version), root)
    return Registration(servable.name, version, digest, created, find_alias(client, servable.name, CHAMPION))


def read_pair_key(folder: Path) -> str:
    """Digest of the stage-1 encoder that a compositor was trained on, or that an encoder's folder holds: equal for two
    that belong together. `InputError` if the card names none."""
    card = load_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
    digests = card.get("encoder_digests") or card.get("digests", {})
    if not {"adapter", "backbone"} <= set(digests) or ("unet" in digests and "encoder_digests" not in card):
        raise InputError(f"{folder}/{CARD_FILE} does not say which encoder it belongs to; run `dvc repro`")
    return compute_digest(json.dumps({part: digests[part] for part in ("adapter", "backbone")}, sort_keys=True))


def settle_version(client: MlflowClient, name: str, *, digest: str, version: str) -> tuple[str, bool]:
    """The one version of this content and whether it is ours. Two clones that share a server have no lock in common:
    where both registered the same content, the lower number stays and the other is deleted."""
    first = find_version(client, name, digest)
    assert first is not None, f"{name} version {version} is gone"
    if first != version:
        client.delete_model_version(name, version)
    return first, first == version


def move_aliases(client: MlflowClient, versions: Mapping[str, str], *, alias: str, tags: Mapping[str, str]) -> None:
    """The one place where `alias` moves: model => its new version. All tags are written before any alias moves: the
    calls are no transaction, and a tag without its move does no harm."""
    for name, version in versions.items():
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
    for name, version in versions.items():
        client.set_registered_model_alias(name, alias, version)


def move_champion(client: MlflowClient, versions: Mapping[str, str], *, reason: str, back: bool = False) -> None:
    """Make `versions` (encoder, then compositor) champions, and remember why, since when, and who was before them.

    back: a rollback, which leaves the memory of who was before as it is: a second one goes one further back.
    """
    before = {name: find_alias(client, name, CHAMPION) for name in versions}
    for name, version in versions.items():
        if not back and before[name] != version:
            client.set_model_version_tag(name, version, PREVIOUS_TAG, before[name] or "none")
        client.set_registered_model_tag(name, CHAMPION_TAG, version)
        _follow_champion(client, name, version)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    move_aliases(client, versions, alias=CHAMPION, tags={REASON_TAG: reason, SINCE_TAG: now})


def _follow_champion(client: MlflowClient, name: str, version: str) -> None:
    """The two other aliases: `previous_champion`, and `challenger`, which a champion is no more."""
    found = client.get_model_version(name, version)
    previous = found.tags.get(PREVIOUS_TAG, "none")
    if previous in {str(other.version) for other in client.search_model_versions(f"name='{name}'")}:
        client.set_registered_model_alias(name, PREVIOUS, previous)
    elif find_alias(client, name, PREVIOUS):
        client.delete_registered_model_alias(name, PREVIOUS)
    if CHALLENGER in found.aliases:
        client.delete_registered_model_alias(name, CHALLENGER)


def remembers_champion(client: MlflowClient, name: str) -> str | None:
    """The version that was made champion last, which may have been deleted since; None if there never was one."""
    model = find_model(client, name)
    return (model.tags.get(CHAMPION_TAG) or find_alias(client, name, CHAMPION)) if model else None


def find_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    """A registered model with its tags and aliases."""
    return next(iter(client.search_registered_models(f"name='{name}'")), None)


def find_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that an alias points to."""
    model = find_model(client, name)
    version = model.aliases.get(alias) if model else None
    return None if version is None else str(version)


def find_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The version with this content; the oldest, if there were several."""
    return find_tagged(client, name, DIGEST_TAG, digest)


def find_tagged(client: MlflowClient, name: str, tag: str, value: str) -> str | None:
    """The oldest version with this tag."""
    found = client.search_model_versions(f"name='{name}'")
    matches = [int(version.version) for version in found if version.tags.get(tag) == value]
    return str(min(matches)) if matches else None


def get_version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """A version with its aliases and tags. `InputError` if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException:
        raise InputError(f"{name} has no version {version}; `imprint models` lists them") from None


def list_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions with their aliases, the newest first; empty for an unknown name."""
    found = client.search_model_versions(f"name='{name}'")
    return [client.get_model_version(name, str(version.version)) for version in found]


def read_metrics(root: Path) -> dict[str, float]:
    """The numbers of `metrics/evaluation.json` with dotted names; empty before the first evaluation."""
    return read_numbers(root / METRICS_FILE)


def read_numbers(path: Path) -> dict[str, float]:
    """The numbers of a metrics file with dotted names; empty where there is none."""
    values = flatten(load_json(path)) if path.is_file() else {}
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}


def read_data_counts(root: Path) -> dict[str, float]:
    """How much data there is (`totals` of `metrics/data.json`): whole numbers by name; empty before the report."""
    numbers = read_numbers(root / DATA_METRICS_FILE)
    totals = {name.removeprefix("totals."): value for name, value in numbers.items() if name.startswith("totals.")}
    return {name: value for name, value in totals.items() if value == int(value)}


def _require_folder(root: Path, servable: Servable) -> Path:
    folder = root / servable.folder
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; run `dvc repro` first")
    return folder


@contextmanager
def _lock_registration(root: Path) -> Iterator[None]:
    """One registration at a time in one folder, so that the same files are uploaded once."""
    with (root / "mlruns" / ".register.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _create_version(client: MlflowClient, servable: Servable, *, digest: str, root: Path) -> str:
    """Log the files as a pyfunc model from code, then register it: a crash between leaves a model without a version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(servable.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = _log_model(client, servable, root)
    version = client.create_model_version(
        servable.name,
        model.model_uri,
        run_id=model.run_id,
        tags=_build_tags(servable, digest, root),
        model_id=model.model_id,
    )
    return str(version.version)


def _build_tags(servable: Servable, digest: str, root: Path) -> dict[str, str]:
    """Content, the encoder that it goes with, and the data that it was trained on."""
    tags = {DIGEST_TAG: digest, "imprint.folder": servable.folder, PAIR_TAG: read_pair_key(root / servable.folder)}
    shards = read_dvc_digests(root).get(SHARDS)
    counts = read_data_counts(root)
    if shards:
        tags[DATA_TAG] = shards
    if counts:
        tags[DATA_COUNTS_TAG] = json.dumps(counts, sort_keys=True)
    return tags


def _log_model(client: MlflowClient, servable: Servable, root: Path) -> Any:
    import mlflow

    uri = resolve_tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment_id = open_store(root)[1]
    source_run_id = _find_source_run(client, experiment_id, compute_path_digest(root / servable.logged_folder))
    run_name = None if source_run_id else f"register-{servable.name}"
    with mlflow.start_run(run_id=source_run_id, experiment_id=experiment_id, run_name=run_name):
        os.environ[REGISTERING] = compute_path_digest(root / servable.folder)
        try:
            return mlflow.pyfunc.log_model(
                name=servable.name,
                python_model=str(_SERVING / servable.code),
                artifacts={"model": str(root / servable.folder), "params": str(root / "params.yaml")},
                code_paths=[str(PACKAGES_ROOT / "imprint")],
                signature=_build_signature(servable),
                input_example=_build_input_example(servable),
                pip_requirements=[f"{name}=={_read_version(name)}" for name in _REQUIREMENTS],
            )
        finally:
            os.environ.pop(REGISTERING)


def _find_source_run(client: MlflowClient, experiment_id: str, digest: str) -> str | None:
    """The run that logged weights with this content; none if DVC restored them."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{DIGEST_TAG}` = '{digest}'")
    return next((model.source_run_id for model in found if model.source_run_id), None)


def _build_signature(servable: Servable) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    output = DataType.binary if servable.output == "image" else Array(Array(DataType.double))
    params = [ParamSpec(name, DataType[kind], default) for name, (kind, default) in servable.params.items()]
    schemas: dict[str, Any] = {
        "inputs": Schema([ColSpec(DataType.binary, name) for name in servable.inputs]),
        "outputs": Schema([ColSpec(output, servable.output)]),
    }
    return ModelSignature(**schemas, **({"params": ParamSchema(params)} if params else {}))


def _build_input_example(servable: Servable) -> Any:
    import pandas as pd

    from imprint.serving.pictures import build_example

    rows = pd.DataFrame([build_example(*servable.inputs)])
    params = {name: default for name, (_, default) in servable.params.items()}
    return (rows, params) if params else rows


def _read_version(package: str) -> str:
    """Installed version without its local suffix (`2.13.0+cpu`), which no index knows."""
    return importlib.metadata.version(package).split("+")[0]
