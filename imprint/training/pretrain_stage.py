"""Stage `pretrain_encoder` (paper: stage 1): an object encoder that survives a change of view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imprint.core.errors import InputError
from imprint.core.params import Params, PretrainEncoder
from imprint.core.stage import open_stage
from imprint.data import ShardReader
from imprint.models import PRESETS, ImprintModel, build_model, load_model
from imprint.models.sources import Source, list_sources, merge_sources
from imprint.training.session import get_final_metrics, publish_model, train_model, work_on
from imprint.training.tasks import IdentityTask

STAGE = "pretrain_encoder"
CODE = (
    "imprint.core",
    "imprint.data",
    "imprint.diffusion",
    "imprint.models",
    "imprint.tracking",
    "imprint.training",
)
SHARDS, OUT = Path("data/shards"), Path("models/pretrained")
FRESH = "checkpoints/fresh"  # stands for random weights, where a model's folder may be named


def run_pretrain_encoder(params: Params, root: Path = Path(".")) -> None:
    """Train backbone, adapter and U-Net on `multiview` pairs and write `models/pretrained`; run again to resume.

    From a model the U-Net's decoder trains alone, as in the paper; from scratch all of it does.
    """
    section = params.pretrain_encoder
    from_scratch = section.init == FRESH
    run = open_stage(STAGE, section, [SHARDS] if from_scratch else [SHARDS, Path(section.init)], CODE, root)
    with work_on(run, root) as tracker:
        model, reader = build_start(section, root), ShardReader(root / SHARDS)
        state = train_model(
            model,
            IdentityTask(section),
            reader=reader,
            params=section,
            from_scratch=from_scratch,
            train_middle_block=section.train_middle_block,
            run=run,
            tracker=tracker,
        )
        extra = {
            "unet_trained": "all (from scratch)" if from_scratch else "decoder",
            "sources": collect_sources(reader, [] if from_scratch else [section.init], root),
        }
        publish_model(model, stage=STAGE, state=state, extra=extra, run=run, target=root / OUT)
        tracker.log_model(kind="encoder", directory=root / OUT, metrics=get_final_metrics(state))


def collect_sources(reader: ShardReader, models: Sequence[str], root: Path) -> list[Source]:
    """What a model learns from: the shards' sources, and those of the models that it starts from."""
    return merge_sources([reader.sources, *(list_sources(root / model, model) for model in models)])


def build_start(section: PretrainEncoder, root: Path) -> ImprintModel:
    """The model of the folder `init`, or a fresh one; `InputError` if it is not of the preset."""
    preset = PRESETS[section.preset]
    if section.init == FRESH:
        return build_model(preset, section.seed)
    model = load_model(root / section.init)
    if model.preset != preset:
        raise InputError(
            f"pretrain_encoder.init: {section.init} is of preset {model.preset.name}, not {preset.name}; "
            f"set pretrain_encoder.init to {FRESH} or to a model of that preset"
        )
    return model
