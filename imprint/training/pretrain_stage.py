"""Stage `pretrain_encoder` (paper: stage 1): an object encoder that survives a change of view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imprint.core.errors import InputError
from imprint.core.params import Params, PretrainEncoder
from imprint.core.sources import is_folder, list_weights
from imprint.core.stage import open_stage
from imprint.data import ShardReader
from imprint.models import PRESETS, ImprintModel, Preset, build_model, load_card, load_model
from imprint.models.checkpoint import load_preset
from imprint.models.presets import choose_encoder, choose_flow, find_encoder
from imprint.models.pretrained import load_pretrained
from imprint.models.provenance import Provenance, describe_weights, list_sources, merge_sources
from imprint.training.session import publish_model, train_model, work_on
from imprint.training.tasks import IdentityTask

STAGE = "pretrain_encoder"
SHARDS, OUT = Path("data/shards"), Path("models/pretrained")
# what may be named in the place of a model's folder: random weights, and the pretrained ones that `weights` names
FRESH, PUBLISHED = "checkpoints/fresh", "checkpoints/pretrained"


def run_pretrain_encoder(params: Params, root: Path = Path(".")) -> None:
    """Train backbone, adapter and U-Net on `multiview` pairs and write `models/pretrained`; run again to resume.

    From a model the U-Net's decoder trains alone, as in the paper, unless `freeze_unet_encoder` is off; from scratch
    all of it does.
    """
    section = params.pretrain_encoder
    from_scratch = section.init == FRESH
    train_all = from_scratch or not section.freeze_unet_encoder
    run = open_stage(STAGE, section, [SHARDS, *list_inputs(section, root)], __name__, root)
    with work_on(run, root) as tracker:
        model, weights = build_start(section, root)
        reader = ShardReader(root / SHARDS)
        starts = [] if section.init in (FRESH, PUBLISHED) else [Path(section.init)]
        state = train_model(
            model,
            IdentityTask(section),
            reader=reader,
            params=section,
            from_scratch=train_all,
            train_middle_block=section.train_middle_block,
            run=run,
            tracker=tracker,
        )
        extra = {
            "unet_trained": "all" if train_all else "decoder",
            "weights": weights,
            "sources": merge_sources([collect_sources(reader, starts, root), describe_weights(weights)]),
        }
        outcome = {"state": state, "params": section, "run": run, "tracker": tracker}
        publish_model(model, "encoder", extra=extra, target=root / OUT, **outcome)


def collect_sources(reader: ShardReader, models: Sequence[Path], root: Path) -> list[Provenance]:
    """What a model learns from: the shards' sources, and those of the models that it starts from."""
    return merge_sources([reader.sources, *(list_sources(root / model, model.as_posix()) for model in models)])


def list_inputs(section: PretrainEncoder, root: Path) -> list[Path]:
    """The folders that the start is read from; what comes from the hub is named by its commit already."""
    if section.init == FRESH:
        return []
    if section.init != PUBLISHED:
        return [Path(section.init)]
    sources = list_weights(section.weights).values()
    return [Path(source.name) for source in sources if is_folder(source, root)]


def build_start(section: PretrainEncoder, root: Path) -> tuple[ImprintModel, dict[str, Any]]:
    """The model that training starts from, and where its published weights came from, for the card.

    It is the one of the folder `init`, a random one, or one with the weights that `weights` names; `InputError` if it
    is not of the preset.
    """
    preset = choose_preset(section)
    if section.init == FRESH:
        return build_model(preset, section.seed), {}
    if section.init == PUBLISHED:
        if preset.vae is None:
            raise InputError(
                f"pretrain_encoder.init: preset {preset.name} has no published weights; "
                f"set it to {FRESH} or a model's folder"
            )
        sources = list_weights(section.weights)
        model = load_pretrained(preset, sources, seed=section.seed, root=root)
        return model, {kind: {"name": source.name, "revision": source.revision} for kind, source in sources.items()}
    found = load_preset(root / section.init)
    if (found.name, find_encoder(found)) != (preset.name, section.options.encoder):
        raise InputError(
            f"pretrain_encoder.init: {section.init} is of preset {found.name}, not {preset.name} "
            f"with options.encoder {section.options.encoder}; "
            f"set pretrain_encoder.init to {FRESH} or to a model of that preset"
        )
    model = load_model(root / section.init, choose_options(found, section), seed=section.seed)
    return model, load_card(root / section.init).get("weights", {})


def choose_preset(section: PretrainEncoder) -> Preset:
    """The named preset with the section's options."""
    return choose_options(choose_encoder(PRESETS[section.preset], section.options.encoder), section)


def choose_options(preset: Preset, section: PretrainEncoder) -> Preset:
    """The preset with the options that need no other weights."""
    options = section.options
    return replace(
        choose_flow(preset, wanted=options.appearance_flow),
        blending=options.blending,
        max_references=options.max_references,
        detail_crop=options.detail_crop,
    )
