"""Both stages of training from published weights, at reduced width, through the stages' own code."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imprint.core.errors import InputError
from imprint.core.geometry import Box
from imprint.core.masks import fill_box
from imprint.core.params import Params, load_params
from imprint.core.stage import StageRun
from imprint.data import ShardReader
from imprint.inference.composer import Compositor
from imprint.models import PRESETS, ImprintModel, compute_weights_digest, load_model
from imprint.models.lora import add_lora
from imprint.tracking import start_run
from imprint.training.compositor_stage import run_train_compositor
from imprint.training.freeze_stage import run_freeze_encoder
from imprint.training.optimizer import build_optimizer
from imprint.training.pretrain_stage import run_pretrain_encoder
from imprint.training.session import offload_frozen, train_model
from imprint.training.tasks import CompositingTask, IdentityTask
from tests.evaluation_cases import draw_case
from tests.published_weights import load_published, write_published
from tests.synthetic import write_shards
from tests.test_training import change

ROOT = Path(__file__).resolve().parents[1]
TINY = PRESETS["sd15-tiny"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


# --- both stages

FEW = {
    "threads": 1,
    "max_steps": 2,
    "batch_size": 2,
    "warmup_steps": 1,
    "log_every_steps": 1,
    "checkpoint_every_steps": 1,
    "validate_every_steps": 2,
    "validation_pairs": 2,
    "min_snr": 0.001,
}


def build_params(stage1: dict, stage2: dict) -> Params:
    loaded = load_params(ROOT / "params.yaml", ROOT / "params" / "smoke.yaml")
    weights = {"base": "base", "base_revision": "", "backbone": "dinov2", "backbone_revision": ""}
    identity = {"preset": "sd15-tiny", "init": "checkpoints/pretrained", "weights": weights, **FEW, **stage1}
    compositing = {"init_unet": "checkpoints/pretrained", "condition_on_level": False, **FEW, **stage2}
    return change(loaded, pretrain_encoder=identity, train_compositor=compositing)


@pytest.fixture(scope="module")
def project(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project folder in which both stages have run from published weights; not to be changed."""
    root = tmp_path_factory.mktemp("sd15") / "project"
    shutil.copytree(published, root)
    write_shards(root / "data" / "shards", size_px=64, reference_px=28)
    params = build_params({}, {"offload_frozen": True})
    run_pretrain_encoder(params, root)
    run_freeze_encoder(params, root)
    run_train_compositor(params, root)
    return root


def read_card(root: Path, name: str) -> dict:
    return json.loads((root / "models" / name / "imprint.json").read_text())


def test_both_stages_start_where_they_should_and_train_what_they_should(project: Path, published: Path) -> None:
    start = load_published(published)
    stage1, stage2 = (
        dict(load_model(project / "models" / name).named_parameters()) for name in ("pretrained", "compositor")
    )
    changed = [
        {name for name, value in start.named_parameters() if not torch.equal(value, after[name])}
        for after in (stage1, stage2)
    ]
    assert {name.split(".")[0] for name in changed[0]} == {"backbone", "adapter", "unet"}
    assert not [name for name in changed[0] if name.startswith(("unet.down_blocks", "unet.conv_in", "unet.time"))]
    # stage 2: the U-Net starts from the published base again, the backbone stays stage 1's
    assert any(name.startswith("unet.down_blocks") for name in changed[1])
    assert all(torch.equal(stage1[name], stage2[name]) for name in stage1 if name.startswith("backbone"))
    assert not [name for names in changed for name in names if name.startswith("vae")]
    step = max(
        float((stage2[name] - value).detach().abs().max()) for name, value in start.unet.named_parameters(prefix="unet")
    )
    assert step < 3 * FEW["max_steps"] * 0.001, "two steps from the published weights"


def test_the_cards_say_where_the_weights_came_from(project: Path) -> None:
    sources = {"base": {"name": "base", "revision": ""}, "backbone": {"name": "dinov2", "revision": ""}}
    assert [read_card(project, name)["weights"] for name in ("pretrained", "encoder", "compositor")] == [sources] * 3
    assert read_card(project, "compositor")["digests"]["vae"] == read_card(project, "pretrained")["digests"]["vae"]
    assert (
        json.loads((project / "models/compositor/scheduler/scheduler_config.json").read_text())["prediction_type"]
        == "epsilon"
    )


def test_a_composite_leaves_the_outside_bit_identical(project: Path) -> None:
    """Though no VAE gives back what it was given."""
    compositor = Compositor(load_model(project / "models" / "compositor"))
    background = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    hole = fill_box(Box(30, 40, 70, 90), (90, 120))
    result = compositor.composite(draw_case(1, 48)["reference"], background, hole, level=None, steps=2, guidance=2.0)
    np.testing.assert_array_equal(result[~hole], background[~hole])
    assert (result != background).any(axis=-1)[hole].mean() > 0.9


def test_settings_that_the_base_cannot_take_are_refused(project: Path, tmp_path: Path) -> None:
    for change_of, message in {
        "condition_on_level": "condition_on_level: preset sd15-tiny cannot take the mask level; set it to false",
        "outside_weight": "outside_weight: preset sd15-tiny predicts epsilon, and with clean .*; set it to 0",
    }.items():
        params = build_params({}, {change_of: True if change_of == "condition_on_level" else 0.5})
        with pytest.raises(InputError, match=message):
            run_train_compositor(params, project)


def test_a_preset_from_scratch_has_no_published_weights(project: Path) -> None:
    with pytest.raises(InputError, match="preset tiny has no published weights; set it to checkpoints/fresh"):
        run_pretrain_encoder(build_params({"preset": "tiny"}, {}), project)


# --- low-rank additions


def train(model: ImprintModel, task: IdentityTask | CompositingTask, *, project: Path, work_dir: Path) -> None:
    run = StageRun(name=task.stage, key="key", work_dir=work_dir, params={}, inputs={})
    opened = {"stage": run.name, "key": run.key, "work_dir": work_dir, "params": {}, "inputs": {}, "root": work_dir}
    options = {"params": task.params, "from_scratch": False, "train_middle_block": True}
    with start_run(**opened) as tracker:
        train_model(model, task, reader=ShardReader(project / "data" / "shards"), run=run, tracker=tracker, **options)


def test_with_lora_the_attentions_alone_change_and_nothing_of_it_is_left(
    project: Path, published: Path, tmp_path: Path
) -> None:
    model, before = (load_published(published, preset=replace(TINY, lora_rank=2)) for _ in range(2))
    train(model, IdentityTask(build_params({}, {}).pretrain_encoder), project=project, work_dir=tmp_path)
    after = dict(model.unet.named_parameters())
    assert set(after) == set(dict(before.unet.named_parameters())), "an ordinary U-Net again"
    changed = {name for name, value in before.unet.named_parameters() if not torch.equal(value, after[name])}
    assert changed
    assert all(".attn" in name and name.startswith(("up_blocks", "mid_block")) for name in changed), changed
    assert compute_weights_digest(model.backbone) != compute_weights_digest(before.backbone)


def test_lora_starts_as_the_u_net_that_it_is_added_to(published: Path) -> None:
    model = load_published(published)
    x_t, timestep, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), model.null_tokens(2)
    with torch.no_grad():
        plain = model.denoise(x_t, timestep, tokens)
        add_lora(model.unet, rank=4, seed=0)
        assert torch.equal(model.denoise(x_t, timestep, tokens), plain)
    assert sum(".lora_" in name for name, _ in model.unet.named_parameters()) > 100


def test_an_optimizer_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    section = build_params({"optimizer": "adamw-8bit"}, {}).pretrain_encoder
    model = torch.nn.Module()
    model.backbone, model.adapter, model.unet = (torch.nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(InputError, match=r"needs bitsandbytes, which is not installed; .*or set optimizer: adamw"):
        build_optimizer(model, section)


def test_offloaded_parts_answer_as_before(published: Path) -> None:
    model = load_published(published)
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.encode_object(picture[..., :28, :28]), model.codec.decode(model.codec.encode(picture))
        model.requires_grad_(False)
        model.unet.requires_grad_(True)
        offload_frozen(model, torch.device("cpu"))
        assert next(model.backbone.parameters()).device.type == "meta", "the weights are elsewhere"
        after = model.encode_object(picture[..., :28, :28]), model.codec.decode(model.codec.encode(picture))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
