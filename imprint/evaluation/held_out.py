"""Does each training stage use the reference? Denoising losses on held-out pairs, with the right object and another.

The weighting, the timesteps and the noise here are fixed: they are the protocol's, not the training's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imprint.core.errors import InputError
from imprint.core.params import Evaluate
from imprint.core.progress import show_progress
from imprint.core.records import PairKind, PairRecord
from imprint.data import (
    CompositingBatch,
    DrawRules,
    IdentityBatch,
    ShardReader,
    build_compositing_sample,
    build_fixed_batch,
    build_identity_sample,
    check_sizes,
    move_batch,
    select_pairs,
    select_rows,
    spread_pairs,
)
from imprint.diffusion import (
    Weighting,
    build_generator,
    compute_compositing_losses,
    compute_identity_losses,
    sample_noise,
)
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.protocol import hash_settings
from imprint.models import ImprintModel

TIMESTEPS = (980, 850, 700, 500)  # of 1000; where there is much noise the reference matters most
WEIGHTING = Weighting(min_snr=1.0, max_snr=1.0)  # none: every timestep counts the same
Batch = TypeVar("Batch", IdentityBatch, CompositingBatch)


def measure_held_out(models: Mapping[str, ImprintModel], shards: Path, section: Evaluate) -> dict[str, Any]:
    """Per stage: loss with the right and with a shuffled reference, and the gain with its interval over clips."""
    reader = ShardReader(shards)
    pairs = {
        "pretrain_encoder": choose_pairs(reader, ["multiview"], section.held_out_pairs),
        "train_compositor": choose_pairs(reader, ["video", "single"], section.held_out_pairs),
    }
    covered = {stage: [pair.pair_id for pair in chosen] for stage, chosen in pairs.items()}
    settings = {"pairs": covered, "timesteps": TIMESTEPS, "levels": section.levels, "seed": section.seed}
    results: dict[str, Any] = {"protocol": hash_settings(settings)}
    with show_progress("evaluate: held-out losses", sum(len(chosen) for chosen in pairs.values())) as bar:
        for stage, chosen in pairs.items():
            batch = _build_batch(reader, chosen, model=models[stage], section=section)
            losses = compute_losses(
                models[stage], batch, partners=choose_partners(chosen), batch_size=section.batch_size, seed=section.seed
            )
            results[stage] = _summarise(losses, [pair.clip_id for pair in chosen], section)
            bar.advance(len(chosen), note=stage)
    return results


def choose_pairs(reader: ShardReader, kinds: Sequence[PairKind], count: int) -> list[PairRecord]:
    """At most `count` test pairs, spread over the clips, of the first of `kinds` that there is."""
    present: list[PairKind] = [
        kind for kind in kinds if any(pair.kind == kind and pair.split == "test" for pair in reader.pairs)
    ]
    kind = present[0] if present else kinds[0]
    return spread_pairs(select_pairs(reader, [kind], split="test")[kind], count)


def choose_partners(pairs: Sequence[PairRecord]) -> list[int]:
    """For each pair the place of the next one of another clip: within a clip there may be twins."""
    partners = []
    for number, pair in enumerate(pairs):
        others = ((number + step) % len(pairs) for step in range(1, len(pairs)))
        other = next((place for place in others if pairs[place].clip_id != pair.clip_id), None)
        if other is None:
            raise InputError("the test pairs come from one clip alone; raise mine_pairs.split_share.test")
        partners.append(other)
    return partners


@torch.inference_mode()
def compute_losses(
    model: ImprintModel, pairs: Batch, *, partners: Sequence[int], batch_size: int, seed: int
) -> Float[np.ndarray, "2 n"]:
    """Loss per pair with its own reference and with its partner's, the mean over TIMESTEPS; the noise is the same."""
    own = list(range(len(partners)))
    losses = np.zeros((2, len(own)))
    for start in range(0, len(own), batch_size):
        places = own[start : start + batch_size]
        batch = move_batch(select_rows(pairs, places), model.device)
        for row, order in enumerate((own, list(partners))):
            shown = move_batch(select_rows(pairs, order[start : start + batch_size]), model.device)
            tokens, _ = model.encode_pictures(shown.reference, shown.more, shown.present)  # one view: all tokens count
            losses[row, places] = np.mean([_denoise(model, batch, tokens, step, seed) for step in TIMESTEPS], axis=0)
    return losses


def _build_batch(reader: ShardReader, pairs: Sequence[PairRecord], *, model: ImprintModel, section: Evaluate) -> Any:
    """An IdentityBatch of multiview pairs, a CompositingBatch of all others."""
    preset = model.preset
    check_sizes(reader, pairs[0], preset=preset.name, size_px=preset.size_px, reference_px=preset.canvas_px)
    levels = dict.fromkeys(section.levels, 1.0)
    rules = DrawRules(mixture={pairs[0].kind: 1.0}, levels=levels, detail=preset.detail_crop)
    if pairs[0].kind == "multiview":
        return build_fixed_batch(reader, pairs, rules=rules, build_sample=build_identity_sample, seed=section.seed)
    return build_fixed_batch(reader, pairs, rules=rules, build_sample=build_compositing_sample, seed=section.seed)


def _denoise(
    model: ImprintModel, batch: IdentityBatch | CompositingBatch, tokens: Tensor, step: int, seed: int
) -> np.ndarray:
    """Loss per sample at one timestep; its noise is a function of the seed, the step and the sample's position."""
    shape_chw = (model.preset.latent_channels, model.preset.latent_px, model.preset.latent_px)
    generators = [build_generator(seed, "held-out", step, int(position)) for position in batch.position]
    timestep = torch.full((len(generators),), step, device=model.device)
    fixed = {"timestep": timestep, "noise": sample_noise(shape_chw, generators, model.device), "weighting": WEIGHTING}
    if isinstance(batch, IdentityBatch):
        losses = compute_identity_losses(model, tokens, batch.target, **fixed)
    else:
        losses = compute_compositing_losses(model, tokens, batch.scene, hole=batch.hole, level=batch.level, **fixed)
    return losses.cpu().numpy()


def _summarise(losses: np.ndarray, clips: Sequence[str], section: Evaluate) -> dict[str, float | int]:
    gains = losses[1] - losses[0]
    low, high = compute_interval(gains, clips, samples=section.bootstrap_samples, seed=section.seed)
    values = {
        "right_loss": losses[0].mean(),
        "shuffled_loss": losses[1].mean(),
        "gain": gains.mean(),
        "gain_low": low,
        "gain_high": high,
    }
    counts = {"num_pairs": len(clips), "num_clips": len(set(clips))}
    return {**counts, **{name: round(float(value), 6) for name, value in values.items()}}
