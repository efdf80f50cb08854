"""`imprint verify` at sd15's structure and reduced width, from random weights in the published layout: minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from imprint.cli import app
from imprint.core.pixels import load_image, load_mask
from imprint.models import load_card
from imprint.verify.project import INPUTS
from imprint.verify.records import DATA, load_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.drill
def test_every_line_of_a_preset_is_tried_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "docs").mkdir()
    (tmp_path / DATA).write_text("[]")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["verify", "sd15-tiny", "--random-weights", "--processes", "2"])
    assert result.exit_code == 0, result.output
    rows = {row.action: row for row in load_rows(tmp_path / DATA)}
    assert set(rows) == {"load", "composite", "stage 1", "stage 2", "resume", "several GPUs"}
    assert {(row.preset, row.weights) for row in rows.values()} == {("sd15-tiny", "random")}
    assert all("20 steps" in rows[stage].figure for stage in ("stage 1", "stage 2", "several GPUs"))
    project = tmp_path / "work" / "verify" / "sd15-tiny"
    assert load_card(project / "models" / "compositor")["steps"] == 20
    picture, outside = load_image(project / "composite.png"), ~load_mask(INPUTS / "mask.png")
    background = load_image(INPUTS / "background.png")
    np.testing.assert_array_equal(picture[outside][..., :3], background[outside][..., :3])
