"""A moved project finds its runs, artifacts and versions again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.relocation import relocate_store
from imprint.tracking.store import open_store


@pytest.mark.parametrize("name", ["new place", "50% #2 ü"])
def test_artifacts_are_found_after_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = tmp_path / "old place", tmp_path / name
    old.mkdir()
    client, experiment_id = open_store(old)
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "weights", "model/weights.txt")
    client.create_registered_model("thing")
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    client.create_model_version("thing", source, run_id=run_id)
    client.set_registered_model_alias("thing", "champion", "1")
    assert relocate_store(old) == 0
    shutil.move(old, new)
    assert relocate_store(new) >= 3
    assert relocate_store(new) == 0
    client, _ = open_store(new)
    assert Path(client.download_artifacts(run_id, "model/weights.txt")).read_text() == "weights"
    version = client.get_model_version_by_alias("thing", "champion")
    assert str(version.source).startswith(new.as_uri())
    client.log_text(client.create_run(experiment_id).info.run_id, "more", "model/more.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
