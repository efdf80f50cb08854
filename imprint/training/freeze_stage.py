"""Stage `freeze_encoder`: backbone and stage-1 adapter as an artefact of their own, with their digests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.core.files import publish_dir
from imprint.core.params import Params
from imprint.core.pixels import put_on_black, to_model_range
from imprint.core.prepare import list_object_crops
from imprint.core.records import PairRecord
from imprint.core.stage import open_stage
from imprint.data import ShardReader, check_sizes, select_pairs, spread_pairs
from imprint.models import Preset, load_card, load_encoder, load_model, save_model
from imprint.models.checkpoint import ENCODER_PARTS
from imprint.models.provenance import list_sources

STAGE = "freeze_encoder"
SHARDS, PRETRAINED, OUT = Path("data/shards"), Path("models/pretrained"), Path("models/encoder")


def run_freeze_encoder(params: Params, root: Path = Path(".")) -> None:
    """Write `models/encoder`, after a check that what was written gives the trained encoder's tokens, bit for bit."""
    run = open_stage(STAGE, params.freeze_encoder, [SHARDS, PRETRAINED], __name__, root)
    model = load_model(root / PRETRAINED)
    export = run.work_dir / "export"
    card = load_card(root / PRETRAINED)
    extra = {
        "pretrained_digests": card["digests"],
        "weights": card.get("weights", {}),
        "sources": list_sources(root / PRETRAINED, PRETRAINED.as_posix()),
    }
    save_model(model, export, stage=STAGE, extra=extra, parts=ENCODER_PARTS)
    reader = ShardReader(root / SHARDS)
    count = params.freeze_encoder.verify_pairs
    pairs = spread_pairs(select_pairs(reader, ["multiview"], split="val")["multiview"], count)
    references = read_references(reader, pairs, preset=model.preset)
    with torch.inference_mode():
        same = torch.equal(model.encode_object(references), load_encoder(export).encode_object(references))
    if not same:
        raise RuntimeError("the saved encoder gives other tokens than the trained one")
    publish_dir(export, root / OUT)


def read_references(reader: ShardReader, pairs: Sequence[PairRecord], *, preset: Preset) -> Float[Tensor, "b 3 r r"]:
    """The reference views on black, in [-1, 1]."""
    check_sizes(reader, pairs[0], preset=preset.name, size_px=preset.size_px, reference_px=preset.canvas_px)
    canvases = [reader.read_pair(pair)[0].object_rgba for pair in pairs]
    shown = [list_object_crops(canvas, detail=preset.detail_crop)[0] for canvas in canvases]
    return torch.from_numpy(to_model_range(np.stack([put_on_black(rgba) for rgba in shown])))
