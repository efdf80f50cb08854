"""Stage `pretrain_encoder` (paper: stage 1): an object encoder that survives a change of view."""

from __future__ import annotations

from pathlib import Path

from imprint.core.params import Params
from imprint.core.stage import open_stage
from imprint.data import ShardReader
from imprint.models import PRESETS, build_model
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


def run_pretrain_encoder(params: Params, root: Path = Path(".")) -> None:
    """Train backbone, adapter and U-Net on `multiview` pairs and write `models/pretrained`; run again to resume."""
    section = params.pretrain_encoder
    run = open_stage(STAGE, section, [SHARDS], CODE, root)
    with work_on(run, root) as tracker:
        model = build_model(PRESETS[section.preset], section.seed)
        state = train_model(
            model,
            IdentityTask(section),
            reader=ShardReader(root / SHARDS),
            params=section,
            train_middle_block=section.train_middle_block,
            run=run,
            tracker=tracker,
        )
        trained = "all (from scratch)" if model.preset.from_scratch else "decoder"
        publish_model(model, stage=STAGE, state=state, extra={"unet_trained": trained}, run=run, target=root / OUT)
        tracker.log_model(kind="encoder", directory=root / OUT, metrics=get_final_metrics(state))
