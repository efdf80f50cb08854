"""Registration from files, aliases, and the registered models at work, loaded with pickles forbidden."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.registry import COMPOSITOR, ENCODER, list_versions, register_all, register_model, settle_version
from imprint.core.errors import InputError
from imprint.core.pixels import decode_image, encode_image
from imprint.models import PRESETS, build_model, save_model
from imprint.models.checkpoint import ENCODER_PARTS
from imprint.serving.pictures import build_example
from imprint.tracking import start_run
from imprint.tracking.mlflow_run import DIGEST_TAG
from imprint.tracking.store import open_store
from tests.registered_models import write_evaluation, write_models
from tests.source_tree import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose models are registered; the compositor's weights come from a tracked run."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        shutil.copy(ROOT / "params.yaml", root)
        write_models(root, seed=0)
        write_evaluation(root, {"object_psnr_db": 21.5})
        settings = {"params": {}, "inputs": {}, "root": root, "work_dir": root / "work"}
        with start_run(stage="train_compositor", key="00", **settings) as tracker:
            tracker.log_model(kind="compositor", directory=root / COMPOSITOR.folder)
        register_all(root)
        yield root


def test_first_versions_are_champions_with_signature_and_metrics(project: Path) -> None:
    client, experiment = open_store(project)
    for servable in (ENCODER, COMPOSITOR):
        (version,) = list_versions(client, servable.name)
        assert version.aliases == ["champion"]
        assert len(version.tags["imprint.digest"]) == 64
    (run,) = client.search_runs([experiment], filter_string="tags.`dvc.stage` = 'train_compositor'")
    (version,) = list_versions(client, COMPOSITOR.name)
    assert version.run_id == run.info.run_id
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics or []} == {"object_psnr_db": 21.5}


def test_registering_again_changes_nothing(project: Path) -> None:
    assert [model.created for model in register_all(project)] == [False, False]


def test_registered_files_hold_no_pickle(project: Path) -> None:
    files = [path for path in (project / "mlruns").rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin", ".pth")] == []
    assert [path for path in files if path.suffix == ".safetensors"]


def test_champion_composites_and_keeps_the_outside(project: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/imprint-compositor@champion")
    background = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    mask = np.zeros((80, 96), np.uint8)
    mask[20:60, 30:70] = 255
    row = build_example("object") | {"background": encode_image(background), "mask": encode_image(mask)}
    params = {"steps": 2, "guidance": 1.5, "seed": 3, "mask_level": "box"}
    image = decode_image(model.predict(pd.DataFrame([row]), params=params)["image"][0], "answer")
    assert image.shape == background.shape
    assert (image[mask == 0] == background[mask == 0]).all()
    assert (image[mask > 0] != background[mask > 0]).any()
    again = decode_image(model.predict(pd.DataFrame([row]), params=params)["image"][0], "answer")
    assert (image == again).all()
    with pytest.raises(InputError, match=r"mask\[0\] is empty"):
        model.predict(pd.DataFrame([row | {"mask": encode_image(np.zeros_like(mask))}]), params=params)


def test_champion_encodes_as_its_example_says(project: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/imprint-encoder@champion")
    example = model.input_example
    tokens = np.array(model.predict(example)["tokens"].tolist())
    preset = PRESETS["tiny"]
    assert tokens.shape == (1, 1 + (preset.reference_px // preset.patch_px) ** 2, preset.token_dim)
    assert np.isfinite(tokens).all()


def test_registered_model_brings_its_own_code(project: Path) -> None:
    """In an interpreter that cannot import the project."""
    code = (
        "import mlflow, pandas as pd, sys\n"
        "model = mlflow.pyfunc.load_model('models:/imprint-encoder@champion')\n"
        "print(len(model.predict(model.input_example)['tokens'][0]), sys.modules['imprint'].__file__)"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "mlruns" in done.stdout.split()[1]


def test_new_content_is_a_new_version_that_is_no_champion(project: Path) -> None:
    write_models(project, seed=1)
    registration = register_model(COMPOSITOR, project)
    assert (registration.version, registration.created, registration.champion) == ("2", True, "1")


def test_two_clones_that_register_the_same_content_at_once_leave_one_version(project: Path) -> None:
    """Both had found none, so both made one; each then looks again."""
    client, _ = open_store(project)
    source = client.get_model_version(ENCODER.name, "1").source
    made = [str(client.create_model_version(ENCODER.name, source, tags={DIGEST_TAG: "same"}).version) for _ in range(2)]
    settled = [settle_version(client, ENCODER.name, digest="same", version=version) for version in reversed(made)]
    assert settled == [(made[0], False), (made[0], True)]
    assert [v.version for v in list_versions(client, ENCODER.name) if v.tags[DIGEST_TAG] == "same"] == [int(made[0])]


def test_models_that_do_not_belong_together_are_not_registered(project: Path) -> None:
    write_models(project, seed=2)
    shutil.rmtree(project / ENCODER.folder)
    save_model(build_model(PRESETS["tiny"], seed=3), project / ENCODER.folder, stage="t", extra={}, parts=ENCODER_PARTS)
    with pytest.raises(InputError, match="another encoder than models/encoder"):
        register_all(project)


def test_missing_models_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dvc repro"):
        register_all(tmp_path)
