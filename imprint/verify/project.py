"""A project folder of its own under `work/verify`, in which the real stages run for 20 steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic, write_json_atomic
from imprint.core.keys import PACKAGES_ROOT
from imprint.core.params import Params, load_params
from imprint.models import PRESETS, Preset
from imprint.training.pretrain_stage import FRESH, PUBLISHED, choose_preset
from imprint.verify.pairs import write_pairs

STEPS, STOP_AT = 20, 10
INPUTS = PACKAGES_ROOT / "demo" / "inputs"
_OVERLAYS = {"tiny": "smoke", "small": "small", "sd15-tiny": "sd15", "sd15": "sd15", "sd15-lora": "sd15-lora"}
_SECTIONS = ("pretrain_encoder", "train_compositor")


@dataclass(frozen=True)
class Project:
    """root: the folder; weights: what the row says of them; pairs: where the shards are from."""

    root: Path
    preset: Preset
    params: Params
    weights: str
    pairs: str


def build_project(name: str, *, overlay: Path | None, shards: Path | None, random_weights: bool, root: Path) -> Project:
    """Make `work/verify/<name>` anew: params, shards, and, where asked for, random weights in the published layout."""
    params = choose_params(name, overlay, root)
    preset = choose_preset(params.pretrain_encoder)
    folder = root / "work" / "verify" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    params, weights = choose_weights(params, preset, random_weights=random_weights, folder=folder, root=root)
    chosen, pairs = choose_shards(params, shards, root)
    (folder / "data").mkdir()
    if chosen is None:
        batch_size = max(getattr(params, section).batch_size for section in _SECTIONS)
        write_pairs(folder / "data" / "shards", INPUTS, params=params.pack_shards, batch_size=batch_size)
    else:
        (folder / "data" / "shards").symlink_to(chosen.resolve())
    write_params(params, folder)
    return Project(folder, preset, params, weights, pairs)


def choose_params(name: str, overlay: Path | None, root: Path) -> Params:
    """The params file that goes with the preset, or the given one, shortened to a few steps."""
    if name not in PRESETS:
        raise InputError(f"preset {name} is unknown; use one of {', '.join(PRESETS)}")
    if overlay is None and name in _OVERLAYS:
        overlay = root / "params" / f"{_OVERLAYS[name]}.yaml"
    params = load_params(root / "params.yaml", overlay)
    preset = PRESETS[name]
    sizes = {"size_px": preset.size_px, "reference_px": preset.canvas_px}
    values = {**params.model_dump(), "pack_shards": params.pack_shards.model_dump() | sizes}
    values["pretrain_encoder"]["preset"] = name
    for section in _SECTIONS:
        values[section] |= shorten(values[section])
    return Params.model_validate(values)


def shorten(section: dict[str, Any]) -> dict[str, Any]:
    """What is different in a stage that only shows that it runs."""
    return {
        "max_steps": STEPS,
        "max_hours": 0.0,
        "checkpoint_every_steps": STOP_AT,
        "keep_checkpoints": 1,
        "validate_every_steps": STEPS,
        "log_every_steps": 1,
        "warmup_steps": min(section["warmup_steps"], STOP_AT),
        "half_size_steps": 0,
        "validation_pairs": 2,
        "loader_workers": min(section["loader_workers"], 2),
        "processes": 1,
    }


def choose_weights(
    params: Params, preset: Preset, *, random_weights: bool, folder: Path, root: Path
) -> tuple[Params, str]:
    """The params with the weights to start from, and what they are: published, random, shipped or fresh."""
    first = params.pretrain_encoder
    if preset.vae is not None:
        return _choose_published(params, preset, random_weights=random_weights, folder=folder, root=root)
    if random_weights or first.init == FRESH:
        return replace_sections(
            params, pretrain_encoder={"init": FRESH}, train_compositor={"init_unet": FRESH}
        ), "fresh"
    starts = {"init": first.init, "init_unet": params.train_compositor.init_unet}
    absolute = {key: str((root / path).resolve()) for key, path in starts.items()}
    stages = {"pretrain_encoder": {"init": absolute["init"]}, "train_compositor": {"init_unet": absolute["init_unet"]}}
    return replace_sections(params, **stages), "shipped"


def choose_shards(params: Params, shards: Path | None, root: Path) -> tuple[Path | None, str]:
    """The given shards; else the project's, if of the preset's size; else None, for a set of the demo picture."""
    if shards is not None:
        return root / shards, str(shards)
    found = root / "data" / "shards"
    packed = params.pack_shards
    if (found / "views.parquet").is_file():
        from imprint.data import ShardReader

        reader = ShardReader(found)
        view = reader.read_view(reader.pairs[0], reader.pairs[0].target_index)
        if (view.scene.shape[0], view.object_rgba.shape[0]) == (packed.size_px, packed.reference_px):
            return found, "data/shards"
        reason = f"data/shards is packed at {view.scene.shape[0]}/{view.object_rgba.shape[0]} px"
    else:
        reason = "there is no data/shards"
    return None, f"the demo picture ({reason}; the preset needs {packed.size_px}/{packed.reference_px} px)"


def write_params(params: Params, folder: Path) -> None:
    """The project's `params.yaml`."""
    text = yaml.safe_dump(json.loads(params.model_dump_json()), sort_keys=False)
    write_bytes_atomic(folder / "params.yaml", text.encode())


def write_random_weights(preset: Preset, folder: Path) -> None:
    """U-Net, VAE, scheduler and image encoder of the preset's structure, in the hub's layout: `base`, `backbone`."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from imprint.models.backbone import build_backbone

    assert preset.vae is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel(**preset.unet).save_pretrained(folder / "base" / "unet")
        AutoencoderKL(**preset.vae).save_pretrained(folder / "base" / "vae")
        build_backbone(preset.backbone).save_pretrained(folder / "backbone")
    schedule = {
        "_class_name": "PNDMScheduler",
        "beta_start": preset.beta_start,
        "beta_end": preset.beta_end,
        "beta_schedule": preset.beta_schedule,
        "num_train_timesteps": 1000,
        "prediction_type": preset.prediction_type,
    }
    write_json_atomic(folder / "base" / "scheduler" / "scheduler_config.json", schedule)


def _choose_published(
    params: Params, preset: Preset, *, random_weights: bool, folder: Path, root: Path
) -> tuple[Params, str]:
    named = params.pretrain_encoder.weights.model_dump()
    if random_weights:
        write_random_weights(preset, folder / "weights")
        named = {"base": "weights/base", "backbone": "weights/backbone", "base_revision": "", "backbone_revision": ""}
    elif preset.name == "sd15-tiny" and not all((root / named[kind]).is_dir() for kind in ("base", "backbone")):
        raise InputError("preset sd15-tiny has no published weights; add --random-weights")
    else:
        for kind in ("base", "backbone"):
            if (root / named[kind]).is_dir():
                named[kind] = str((root / named[kind]).resolve())
    stages = {"pretrain_encoder": {"init": PUBLISHED, "weights": named}, "train_compositor": {"init_unet": PUBLISHED}}
    return replace_sections(params, **stages), "random" if random_weights else "published"


def replace_sections(params: Params, **sections: dict[str, Any]) -> Params:
    """The params with keys of sections replaced, checked again."""
    values = params.model_dump()
    for name, keys in sections.items():
        values[name] |= keys
    return Params.model_validate(values)
