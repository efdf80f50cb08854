"""`imprint verify`: its pair set, its project, its rows, and that the table of the docs is that of their data.

The whole command at reduced width is `tests/drills/test_verify_preset.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from flows.cli import app as pipeline_app
from imprint.cli import app
from imprint.core.errors import InputError
from imprint.core.files import compute_path_digest
from imprint.core.params import Params, load_params
from imprint.data import PairDataset, ShardReader, select_pairs
from imprint.models import PRESETS
from imprint.training.pretrain_stage import build_start
from imprint.training.tasks import CompositingTask, IdentityTask
from imprint.verify.pairs import write_pairs
from imprint.verify.project import INPUTS, STEPS, build_project, choose_params
from imprint.verify.records import (
    ACTIONS,
    DATA,
    PRESET_NAMES,
    TABLE,
    Row,
    load_rows,
    merge_rows,
    render_table,
    save_rows,
)

ROOT = Path(__file__).resolve().parents[1]
ROW = Row(
    preset="tiny", action="load", weights="fresh", figure="1 s", hardware="a box", date="2026-01-02", commit="abc"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with nothing but its params."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


# --- the table


def test_the_docs_table_is_that_of_its_data() -> None:
    assert (ROOT / TABLE).read_text() == render_table(load_rows(ROOT / DATA))


def test_the_table_names_every_preset_and_action() -> None:
    assert set(PRESET_NAMES) == set(PRESETS)
    table = render_table([ROW])
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [(line[0], line[1]) for line in lines] == [
        (f"| `{name}`", action) for name in PRESET_NAMES for action in ACTIONS
    ]
    assert "| `tiny` | load | fresh | 1 s | a box | 2026-01-02 | abc |" in table
    assert table.count("never run**") == 1 + len(PRESET_NAMES) * len(ACTIONS) - 1


def test_a_later_run_on_the_same_hardware_takes_the_earlier_ones_place() -> None:
    again = Row(**{**asdict(ROW), "figure": "2 s"})
    elsewhere = Row(**{**asdict(ROW), "hardware": "another box"})
    assert merge_rows([ROW], [again, elsewhere]) == [again, elsewhere]


def test_rows_go_into_the_work_folder_and_in_a_checkout_into_the_docs(tmp_path: Path) -> None:
    assert save_rows([ROW], tmp_path / "work", tmp_path) == [tmp_path / "work" / "verified.json"]
    (tmp_path / "docs").mkdir()
    other = Row(**{**asdict(ROW), "action": "resume"})
    (tmp_path / DATA).write_text(json.dumps([asdict(other)]))
    save_rows([ROW], tmp_path / "work", tmp_path)
    assert load_rows(tmp_path / DATA) == [ROW, other]
    assert (tmp_path / TABLE).read_text() == render_table([ROW, other])
    (tmp_path / DATA).write_text("[1]")
    with pytest.raises(InputError, match=r"verified\.json holds no rows"):
        load_rows(tmp_path / DATA)


# --- the pair set


def test_the_demo_pairs_are_the_same_bytes_again_and_feed_both_stages(tmp_path: Path) -> None:
    params = choose_params("sd15-tiny", None, ROOT)
    options = {"params": params.pack_shards, "batch_size": 20}
    folder = write_pairs(tmp_path / "one", INPUTS, **options)
    assert compute_path_digest(folder) == compute_path_digest(write_pairs(tmp_path / "two", INPUTS, **options))
    reader = ShardReader(folder)
    for task in (IdentityTask(params.pretrain_encoder), CompositingTask(params.train_compositor)):
        pairs = select_pairs(reader, sorted(task.rules.mixture), split="train", at_least=20)
        assert select_pairs(reader, sorted(task.rules.mixture), split="val")
        sample = PairDataset(reader, pairs, task.rules, task.build_sample, seed=0)[3]
        assert sample.reference.shape == (1, 3, 28, 28)
        assert task.get_target(sample).shape == (1, 3, 64, 64)
    views = [reader.read_view(pair, pair.target_index) for pair in reader.pairs[:12]]
    assert all(0.03 < view.mask.mean() < 0.7 for view in views)
    assert not np.array_equal(views[0].scene, views[1].scene)


# --- the project


def test_random_weights_take_the_way_of_published_ones(root: Path) -> None:
    """The files that are written are those of a hub repository, and they are loaded strictly."""
    project = build_project("sd15-tiny", overlay=None, shards=None, random_weights=True, root=root)
    assert (project.weights, project.root) == ("random", root / "work" / "verify" / "sd15-tiny")
    assert "there is no data/shards" in project.pairs
    params = load_params(project.root / "params.yaml")
    assert params == project.params
    assert params.pretrain_encoder.init == params.train_compositor.init_unet == "checkpoints/pretrained"
    assert (params.pretrain_encoder.max_steps, params.train_compositor.max_steps) == (STEPS, STEPS)
    model, _ = build_start(params.pretrain_encoder, project.root)
    assert (model.preset.size_px, model.unet.config["cross_attention_dim"]) == (64, 32)
    assert model.unet.conv_out.weight.abs().max() > 0, "not the start of a model from scratch"
    spoiled = project.root / "weights" / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    spoiled.unlink()
    with pytest.raises(InputError, match=r"base/unet has no \.safetensors file"):
        build_start(params.pretrain_encoder, project.root)


def test_a_project_begins_anew_and_uses_the_shards_that_fit(root: Path) -> None:
    stale = root / "work" / "verify" / "tiny" / "left-over"
    stale.mkdir(parents=True)
    params = choose_params("tiny", None, root)
    write_pairs(root / "data" / "shards", INPUTS, params=params.pack_shards, batch_size=8)
    project = build_project("tiny", overlay=None, shards=None, random_weights=False, root=root)
    assert (project.weights, project.pairs) == ("fresh", "data/shards")
    assert not stale.exists()
    assert ShardReader(project.root / "data" / "shards").pairs
    other = build_project("small", overlay=None, shards=None, random_weights=False, root=root)
    assert other.pairs == "the demo picture (data/shards is packed at 64/64 px; the preset needs 128/128 px)"


def test_the_shipped_base_starts_from_its_checkpoint(root: Path) -> None:
    project = build_project("base", overlay=None, shards=None, random_weights=False, root=root)
    assert project.weights == "shipped"
    assert project.params.pretrain_encoder.init == str(root / "checkpoints" / "base")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["medium"], "preset medium is unknown; use one of tiny, base"),
        (["sd15-tiny"], "preset sd15-tiny has no published weights; add --random-weights"),
        (["tiny", "--params", "absent.yaml"], "absent.yaml cannot be read"),
    ],
)
def test_what_cannot_be_tried_gets_one_line(
    arguments: list[str], message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"verify: {message}")
    assert result.stderr.count("\n") == 1


def test_what_the_training_page_tells_people_to_type_exists() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    commands = typer.main.get_command(pipeline_app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert (
        {"estimate", "verify", "doctor", "composite"}
        <= set(re.findall(r"\bimprint ([a-z-]+)", blocks))
        <= set(commands)
    )
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert set(re.findall(r"dvc repro ([a-z_]+)", blocks)) <= stages
    assert all((ROOT / "docs" / link).exists() for link in re.findall(r"\]\(([a-z_]+\.md)\)", page))
    keys = Params.model_fields["pretrain_encoder"].annotation.model_fields  # pyright: ignore[reportOptionalMemberAccess]
    for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL):
        for section, values in yaml.safe_load(block).items():
            assert section in Params.model_fields
            assert section != "pretrain_encoder" or set(values) <= set(keys)
