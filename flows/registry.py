"""MLflow's model registry: versions by content, aliases. Works from the files in `models/`, with or without a live run.

Registering twice is registering once: a version carries the digest of the exported folder. The registry is as trusted
as its writers; whoever serves a model can compare that digest with the files.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprint.core.errors import InputError
from imprint.core.files import compute_path_digest
from imprint.core.stage import PACKAGES_ROOT
from imprint.tracking.mlflow_run import DIGEST_TAG, flatten
from imprint.tracking.store import open_store, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
METRICS_FILE = "metrics/evaluation.json"
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
        "steps": ("integer", 20),
        "guidance": ("double", 2.0),
        "seed": ("integer", 0),
        "mask_level": ("string", "box"),
    },
)
SERVABLES = (ENCODER, COMPOSITOR)


@dataclass(frozen=True)
class Registration:
    """`created`: false if this very content had been registered before."""

    name: str
    version: str
    digest: str
    created: bool
    champion: str

    def describe(self) -> str:
        """One line for people."""
        verb = "registered as" if self.created else "is registered already as"
        return f"{self.name} {verb} version {self.version} (champion: version {self.champion})"


def register_all(root: Path = Path(".")) -> list[Registration]:
    """Register both models of the project at `root`."""
    return [register_model(servable, root) for servable in SERVABLES]


def register_model(servable: Servable, root: Path = Path(".")) -> Registration:
    """Register what lies in `models/` unless its content has a version already; the first version becomes champion."""
    folder = root / servable.folder
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; run `dvc repro` first")
    client, _ = open_store(root)
    digest = compute_path_digest(folder)
    version = find_version(client, servable.name, digest)
    created = version is None
    if version is None:
        version = _create_version(client, servable, digest=digest, root=root)
    if find_alias(client, servable.name, CHAMPION) is None:
        move_alias(client, servable.name, alias=CHAMPION, version=version)
    champion = find_alias(client, servable.name, CHAMPION)
    assert champion is not None
    return Registration(servable.name, str(version), digest, created, str(champion))


def promote(name: str, version: str, root: Path = Path(".")) -> None:
    """Make a version the champion; `InputError` if there is none."""
    from mlflow.exceptions import MlflowException

    client, _ = open_store(root)
    try:
        client.get_model_version(name, version)
    except MlflowException:
        raise InputError(
            f"{name} has no version {version} in {resolve_tracking_uri(root)}; `imprint models` lists them"
        ) from None
    move_alias(client, name, alias=CHAMPION, version=version)


def move_alias(client: MlflowClient, name: str, *, alias: str, version: str) -> None:
    """The one place where an alias moves. The tag that remembers the alias's last version is written first: the two
    calls are no transaction, and a tag without its move does no harm."""
    previous = find_alias(client, name, alias)
    if previous == version:
        return
    client.set_model_version_tag(name, version, f"imprint.previous_{alias}", previous or "none")
    client.set_registered_model_alias(name, alias, version)


def find_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that an alias points to."""
    return next((str(version.version) for version in list_versions(client, name) if alias in version.aliases), None)


def find_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The version with this content."""
    matches = (v.version for v in list_versions(client, name) if v.tags.get(DIGEST_TAG) == digest)
    return next((str(version) for version in matches), None)


def list_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions with their aliases, the newest first; empty for an unknown name."""
    found = client.search_model_versions(f"name='{name}'")
    return [client.get_model_version(name, str(version.version)) for version in found]


def read_metrics(root: Path) -> dict[str, float]:
    """The numbers of `metrics/evaluation.json` with dotted names; empty before the first evaluation."""
    path = root / METRICS_FILE
    values = flatten(json.loads(path.read_text())) if path.is_file() else {}
    return {key: float(value) for key, value in values.items() if type(value) in (int, float)}


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
        tags={DIGEST_TAG: digest, "imprint.folder": servable.folder},
        model_id=model.model_id,
    )
    return str(version.version)


def _log_model(client: MlflowClient, servable: Servable, root: Path) -> Any:
    import mlflow

    uri = resolve_tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment_id = open_store(root)[1]
    source_run_id = _find_source_run(client, experiment_id, compute_path_digest(root / servable.logged_folder))
    run_name = None if source_run_id else f"register-{servable.name}"
    with mlflow.start_run(run_id=source_run_id, experiment_id=experiment_id, run_name=run_name):
        model = mlflow.pyfunc.log_model(
            name=servable.name,
            python_model=str(_SERVING / servable.code),
            artifacts={"model": str(root / servable.folder), "params": str(root / "params.yaml")},
            code_paths=[str(PACKAGES_ROOT / "imprint")],
            signature=_build_signature(servable),
            input_example=_build_input_example(servable),
            pip_requirements=[f"{name}=={_read_version(name)}" for name in _REQUIREMENTS],
        )
        if servable is COMPOSITOR:
            mlflow.log_metrics(read_metrics(root), model_id=model.model_id)
    return model


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
