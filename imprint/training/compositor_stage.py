"""Stage `train_compositor` (paper: stage 2): put the object into a scene, with the backbone of stage 1 frozen."""

from __future__ import annotations

from pathlib import Path

from imprint.core.errors import InputError
from imprint.core.params import Params, TrainCompositor
from imprint.core.sources import Source, is_folder
from imprint.core.stage import open_stage
from imprint.data import ShardReader
from imprint.models import ImprintModel, Preset, build_model, load_card, load_part
from imprint.models.checkpoint import ENCODER_PARTS, check_digest, is_new_flow, load_preset
from imprint.models.pretrained import load_base
from imprint.training.pretrain_stage import FRESH, PUBLISHED, SHARDS, collect_sources
from imprint.training.session import publish_model, train_model, work_on
from imprint.training.tasks import CompositingTask

STAGE = "train_compositor"
ENCODER, PRETRAINED, OUT = Path("models/encoder"), Path("models/pretrained"), Path("models/compositor")


def run_train_compositor(params: Params, root: Path = Path(".")) -> None:
    """Train adapter and U-Net on `video` and `single` pairs and write `models/compositor`; run again to resume.

    `InputError` names both digests if the encoder's backbone is not the recorded one, before training or after.
    """
    section = params.train_compositor
    start = [] if section.init_unet in (FRESH, PUBLISHED) else [Path(section.init_unet)]
    run = open_stage(STAGE, section, [SHARDS, ENCODER, *start, *list_weights_folders(section, root)], __name__, root)
    with work_on(run, root) as tracker:
        reader = ShardReader(root / SHARDS)
        model = build_start(root, seed=section.seed, init_unet=section.init_unet)
        check_section(section, model.preset)
        card = load_card(root / ENCODER)
        recorded = card["digests"]
        state = train_model(
            model,
            CompositingTask(section),
            reader=reader,
            params=section,
            from_scratch=False,
            train_middle_block=True,
            run=run,
            tracker=tracker,
        )
        check_digest("backbone", model.backbone, recorded=recorded["backbone"], source=f"{ENCODER}/imprint.json")
        extra = {
            "encoder_digests": recorded,
            "condition_on_level": section.condition_on_level,
            "weights": card.get("weights", {}),
            "sources": collect_sources(reader, [ENCODER, *start], root),
        }
        outcome = {"state": state, "params": section, "run": run, "tracker": tracker}
        publish_model(model, "compositor", extra=extra, target=root / OUT, **outcome)


def list_weights_folders(section: TrainCompositor, root: Path) -> list[Path]:
    """The folder of the published base, where that is what the U-Net starts from and it is no hub id."""
    if section.init_unet != PUBLISHED or not (root / ENCODER).is_dir():
        return []
    base = find_base(root / ENCODER)
    return [Path(base.name)] if is_folder(base, root) else []


def build_start(root: Path, *, seed: int, init_unet: str) -> ImprintModel:
    """The frozen encoder with the U-Net (and VAE) of the folder `init_unet`, with a fresh one, or with the published
    one that stage 1 started from; parts are checked on loading.

    Stage 1's own U-Net has to have been trained with this encoder; that of another model learns to read it here.
    """
    model = build_model(load_preset(root / ENCODER), seed)
    for part in ENCODER_PARTS:
        load_part(model, part, root / ENCODER)
    if init_unet == PRETRAINED.as_posix():
        check_same_backbone(root / ENCODER, root / PRETRAINED)
    if init_unet == PUBLISHED:
        load_base(model, find_base(root / ENCODER), root)
    elif init_unet != FRESH:
        for part in [part for part in model.parts if part not in ENCODER_PARTS]:
            if not is_new_flow(part, root / init_unet):
                load_part(model, part, root / init_unet)
    return model


def find_base(encoder: Path) -> Source:
    """The published base that the encoder's card names."""
    base = load_card(encoder).get("weights", {}).get("base")
    if base is None:
        raise InputError(
            f"train_compositor.init_unet: {encoder} was not trained from published weights; name models/pretrained"
        )
    return Source("base", base["name"], base["revision"])


def check_section(section: TrainCompositor, preset: Preset) -> None:
    """`InputError` for settings that the preset's model would pass over in silence."""
    if section.condition_on_level and not preset.pooled:
        raise InputError(
            f"train_compositor.condition_on_level: preset {preset.name} cannot take the mask level; set it to false"
        )
    if section.outside_weight > 0 and preset.blending == "clean" and preset.prediction_type != "sample":
        raise InputError(
            f"train_compositor.outside_weight: preset {preset.name} predicts {preset.prediction_type}, and with clean "
            "blending no noise is outside the hole to be predicted; set it to 0"
        )


def check_same_backbone(encoder: Path, pretrained: Path) -> None:
    """`InputError` that names both digests if the U-Net was not trained with the encoder's backbone."""
    found, wanted = (load_card(directory)["digests"]["backbone"] for directory in (encoder, pretrained))
    if found != wanted:
        raise InputError(
            f"{encoder} has a backbone with digest {found}, but {pretrained} was trained with {wanted}; "
            "run `dvc repro freeze_encoder`"
        )
