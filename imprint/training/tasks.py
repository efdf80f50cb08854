"""What differs between the two stages: which pairs, what the model sees, and the loss. The loop is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.core.params import PretrainEncoder, TrainCompositor, Training
from imprint.core.records import PairKind
from imprint.data import CompositingBatch, DrawRules, IdentityBatch, build_compositing_sample, build_identity_sample
from imprint.data.dataset import BuildSample
from imprint.diffusion import (
    Weighting,
    compute_compositing_losses,
    compute_identity_losses,
    sample_composite,
    sample_object,
)
from imprint.models import ImprintModel
from imprint.models.freezing import TrainingStage
from imprint.training.augment import augment_reference
from imprint.training.noising import Noising

Generators = list[torch.Generator]


@runtime_checkable
class Task(Protocol):
    """One stage as the loop sees it. `Any` is the stage's own batch."""

    @property
    def stage(self) -> TrainingStage: ...
    @property
    def rules(self) -> DrawRules: ...
    @property
    def build_sample(self) -> BuildSample[Any]: ...
    def augment(self, batch: Any, *, seed: int) -> Any: ...
    def compute_losses(self, model: ImprintModel, batch: Any, noising: Noising) -> Tensor: ...
    def sample_images(
        self, model: ImprintModel, batch: Any, *, steps: int, guidance: float, generator: Generators
    ) -> Tensor: ...
    def get_target(self, batch: Any) -> Tensor: ...


@dataclass(frozen=True)
class IdentityTask:
    """Stage 1 (paper: context-agnostic identity-preserving pretraining): view 1 -> tokens; denoise view 2 on black."""

    params: PretrainEncoder
    stage: TrainingStage = "identity"
    build_sample = staticmethod(build_identity_sample)

    @property
    def rules(self) -> DrawRules:
        flip, swap = self.params.flip_rate, self.params.channel_swap_rate
        return DrawRules(mixture=choose_mixture(self.params), flip_rate=flip, swap_rate=swap)

    def augment(self, batch: IdentityBatch, *, seed: int) -> IdentityBatch:
        if self.params.colour_jitter == 0:
            return batch
        reference, more = augment_pictures(batch, self.params, affine=False, seed=seed)
        return replace(batch, reference=reference, more=more)

    def compute_losses(self, model: ImprintModel, batch: IdentityBatch, noising: Noising) -> Float[Tensor, " b"]:
        tokens, counts = model.encode_pictures(batch.reference, batch.more, batch.present)
        return compute_identity_losses(
            model,
            replace_by_null(model, tokens, noising),
            batch.target,
            counts=counts,
            timestep=noising.timestep,
            noise=noising.noise,
            weighting=build_weighting(self.params),
        )

    def sample_images(
        self, model: ImprintModel, batch: IdentityBatch, *, steps: int, guidance: float, generator: Generators
    ) -> Float[Tensor, "b 3 s s"]:
        tokens, counts = model.encode_pictures(batch.reference, batch.more, batch.present)
        return sample_object(model, tokens, steps=steps, guidance=guidance, generator=generator, counts=counts)

    def get_target(self, batch: IdentityBatch) -> Float[Tensor, "b 3 s s"]:
        return batch.target


@dataclass(frozen=True)
class CompositingTask:
    """Stage 2: the object's tokens and the clean background with noise in the hole alone; denoise the hole.

    `video` pairs take the reference from another frame; `single` ones from the target itself, changed in form, colour
    and light so that it cannot be copied.
    """

    params: TrainCompositor
    stage: TrainingStage = "compositing"
    build_sample = staticmethod(build_compositing_sample)

    @property
    def rules(self) -> DrawRules:
        return DrawRules(
            mixture=choose_mixture(self.params),
            levels=self.params.mask_levels,
            max_contact_margin=self.params.max_contact_margin,
            flip_rate=self.params.flip_rate,
            swap_rate=self.params.channel_swap_rate,
        )

    def augment(self, batch: CompositingBatch, *, seed: int) -> CompositingBatch:
        reference, more = augment_pictures(batch, self.params, affine=True, seed=seed)
        is_single = batch.is_single[:, None, None, None]
        return replace(
            batch,
            reference=torch.where(is_single, reference, batch.reference),
            more=torch.where(is_single[..., None], more, batch.more),
        )

    def compute_losses(self, model: ImprintModel, batch: CompositingBatch, noising: Noising) -> Float[Tensor, " b"]:
        tokens, counts = model.encode_pictures(batch.reference, batch.more, batch.present)
        return compute_compositing_losses(
            model,
            replace_by_null(model, tokens, noising),
            batch.scene,
            counts=counts,
            hole=batch.hole,
            level=batch.level if self.params.condition_on_level else None,
            timestep=noising.timestep,
            noise=noising.noise,
            weighting=build_weighting(self.params, outside=self.params.outside_weight),
        )

    def sample_images(
        self, model: ImprintModel, batch: CompositingBatch, *, steps: int, guidance: float, generator: Generators
    ) -> Float[Tensor, "b 3 s s"]:
        tokens, counts = model.encode_pictures(batch.reference, batch.more, batch.present)
        return sample_composite(
            model,
            batch.scene,
            batch.hole,
            tokens,
            counts=counts,
            level=batch.level if self.params.condition_on_level else None,
            steps=steps,
            guidance=guidance,
            generator=generator,
        )

    def get_target(self, batch: CompositingBatch) -> Float[Tensor, "b 3 s s"]:
        return batch.scene


def augment_pictures(
    batch: IdentityBatch | CompositingBatch, params: Training, *, affine: bool, seed: int
) -> tuple[Float[Tensor, "b 3 r r"], Float[Tensor, "b e 3 r r"]]:
    """The object's reference and its further pictures, each changed by a draw of its own; `seed` is the step's.

    The batch may be a part of the step's samples: its rows, by their positions, are changed as they are in the whole.
    """
    first_row, size, jitter = int(batch.position[0]) % params.batch_size, params.batch_size, params.colour_jitter
    augment = partial(augment_reference, affine=affine, colour_jitter=jitter)
    reference = augment(batch.reference, batch.opacity, seed=seed, first_row=first_row, batch_size=size)
    count = batch.more.shape[1]
    if count == 0:
        return reference, batch.more
    pictures, opacity = batch.more.flatten(0, 1), batch.more_opacity.flatten(0, 1)
    more = augment(pictures, opacity, seed=seed + 1, first_row=first_row * count, batch_size=size * count)
    return reference, more.unflatten(0, (-1, count))


def replace_by_null(model: ImprintModel, tokens: Float[Tensor, "b n d"], noising: Noising) -> Float[Tensor, "b n d"]:
    """The null token for the samples that were drawn for it."""
    null = model.null_tokens(len(tokens), tokens.shape[1])
    return torch.where(noising.is_null[:, None, None], null, tokens)


def build_weighting(params: Training, *, outside: float = 0.0) -> Weighting:
    """The loss weights of a params section."""
    return Weighting(min_snr=params.min_snr, max_snr=params.max_snr, outside=outside)


def choose_mixture(params: Training) -> dict[PairKind, float]:
    """Kind of pair => its share, of those that have one."""
    return {kind: share for kind, share in params.mixture.items() if share > 0}


def list_kinds(task: Task) -> list[PairKind]:
    """The kinds of pair that the task draws from."""
    return sorted(task.rules.mixture)
