"""Stage `train_compositor` (paper: stage 2): put the object into a scene, with the backbone of stage 1 frozen."""

from __future__ import annotations

from pathlib import Path

from imprint.core.errors import InputError
from imprint.core.params import Params
from imprint.core.stage import open_stage
from imprint.data import ShardReader
from imprint.models import ImprintModel, build_model, load_card, load_part
from imprint.models.checkpoint import ENCODER_PARTS, check_digest, load_preset
from imprint.training.pretrain_stage import CODE, FRESH, SHARDS, collect_sources
from imprint.training.session import get_final_metrics, publish_model, train_model, work_on
from imprint.training.tasks import CompositingTask

STAGE = "train_compositor"
ENCODER, PRETRAINED, OUT = Path("models/encoder"), Path("models/pretrained"), Path("models/compositor")


def run_train_compositor(params: Params, root: Path = Path(".")) -> None:
    """Train adapter and U-Net on `video` and `single` pairs and write `models/compositor`; run again to resume.

    `InputError` names both digests if the encoder's backbone is not the recorded one, before training or after.
    """
    section = params.train_compositor
    start = [] if section.init_unet == FRESH else [Path(section.init_unet)]
    run = open_stage(STAGE, section, [SHARDS, ENCODER, *start], CODE, root)
    with work_on(run, root) as tracker:
        reader = ShardReader(root / SHARDS)
        model = build_start(root, seed=section.seed, init_unet=section.init_unet)
        recorded = load_card(root / ENCODER)["digests"]
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
        models = [ENCODER.as_posix()] + ([] if section.init_unet == FRESH else [section.init_unet])
        extra = {
            "encoder_digests": recorded,
            "condition_on_level": section.condition_on_level,
            "sources": collect_sources(reader, models, root),
        }
        publish_model(model, stage=STAGE, state=state, extra=extra, run=run, target=root / OUT)
        tracker.log_model(kind="compositor", directory=root / OUT, metrics=get_final_metrics(state))


def build_start(root: Path, *, seed: int, init_unet: str) -> ImprintModel:
    """The frozen encoder with the U-Net of the folder `init_unet`, or with a fresh one; parts are checked on loading.

    Stage 1's own U-Net has to have been trained with this encoder; that of another model learns to read it here.
    """
    model = build_model(load_preset(root / ENCODER), seed)
    for part in ENCODER_PARTS:
        load_part(model, part, root / ENCODER)
    if init_unet == PRETRAINED.as_posix():
        check_same_backbone(root / ENCODER, root / PRETRAINED)
    if init_unet != FRESH:
        load_part(model, "unet", root / init_unet)
    return model


def check_same_backbone(encoder: Path, pretrained: Path) -> None:
    """`InputError` that names both digests if the U-Net was not trained with the encoder's backbone."""
    found, wanted = (load_card(directory)["digests"]["backbone"] for directory in (encoder, pretrained))
    if found != wanted:
        raise InputError(
            f"{encoder} has a backbone with digest {found}, but {pretrained} was trained with {wanted}; "
            "run `dvc repro freeze_encoder`"
        )
