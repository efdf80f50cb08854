"""What differs between the two stages: which pairs, what the model sees, and the loss. The loop is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.appearance import (
    AppearanceFlow,
    FlowWeights,
    build_grid,
    compute_behind,
    compute_flow_losses,
    render,
)
from imprint.core.params import PretrainEncoder, TrainCompositor, Training
from imprint.core.records import PairKind
from imprint.data import (
    PAIR_KINDS,
    CompositingBatch,
    DrawRules,
    IdentityBatch,
    build_compositing_sample,
    build_identity_sample,
)
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
from imprint.training.augment import augment_reference, change_exposure, meter_scenes
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
        (reference, _), more = augment_pictures(batch, self.params, affine=False, seed=seed)
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
            hide_rate=self.params.hide_rate,
        )

    def augment(self, batch: CompositingBatch, *, seed: int) -> CompositingBatch:
        (reference, opacity), more = augment_pictures(batch, self.params, affine=True, seed=seed)
        is_single = batch.is_single[:, None, None, None]
        reference = torch.where(is_single, reference, batch.reference)
        scene, background = batch.scene, batch.background
        rows = {"first_row": int(batch.position[0]) % self.params.batch_size, "batch_size": self.params.batch_size}
        if self.params.exposure_jitter > 0:
            reference = change_exposure(reference, stops=self.params.exposure_jitter, seed=seed, **rows)
        if self.params.scene_metering > 0:
            drawn = {"share": self.params.scene_metering, "seed": seed + 1, **rows}
            scene, background = meter_scenes(scene, background, batch.hole, **drawn)
        return replace(
            batch,
            scene=scene,
            background=background,
            reference=reference,
            opacity=torch.where(is_single, opacity, batch.opacity),
            more=torch.where(is_single[..., None], more, batch.more),
        )

    def compute_losses(self, model: ImprintModel, batch: CompositingBatch, noising: Noising) -> Float[Tensor, " b"]:
        tokens, counts = model.encode_pictures(batch.reference, batch.more, batch.present)
        losses = torch.zeros(len(batch.position), device=batch.scene.device)
        rates = self.params.learning_rate
        if rates.adapter > 0 or rates.unet > 0:
            losses = losses + compute_compositing_losses(
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
        if model.appearance_flow is not None and rates.appearance_flow > 0:
            losses = losses + compute_appearance_losses(model.appearance_flow, batch, tokens.detach(), counts)
        return losses

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


def compute_appearance_losses(
    network: AppearanceFlow, batch: CompositingBatch, tokens: Float[Tensor, "b n d"], counts: Tensor | None
) -> Float[Tensor, " b"]:
    """Of the appearance flow's picture (beyond the paper); 0 where the object stands on nothing (`multiview`). The
    tokens are the identity encoder's, which learns by the denoising alone."""
    reference, scene, background = join_reference(batch), batch.scene * 0.5 + 0.5, batch.background * 0.5 + 0.5
    fields = network(
        background,
        batch.hole,
        hidden=batch.hidden,
        reference=reference,
        tokens=tokens,
        counts=counts,
        level=batch.level,
    )
    grid = build_grid(*scene.shape[2:], device=scene.device)
    with torch.autocast(scene.device.type, enabled=False):
        losses = compute_flow_losses(
            fields,
            render(fields, reference, grid),
            background=compute_behind(fields, background, batch.hole & batch.hidden[:, None, None, None], grid),
            scene=scene,
            mask=batch.mask,
            hole=batch.hole,
            has_plate=~batch.hidden,
            level=batch.level,
            weights=FlowWeights(),
        )
    return losses * (batch.kind != PAIR_KINDS.index("multiview"))


def join_reference(batch: CompositingBatch) -> Float[Tensor, "b 4 r r"]:
    """RGBA 0-1 of the batch's references, colours premultiplied: on black they are that already."""
    return torch.cat([batch.reference * 0.5 + 0.5, batch.opacity], dim=1)


def augment_pictures(
    batch: IdentityBatch | CompositingBatch, params: Training, *, affine: bool, seed: int
) -> tuple[tuple[Float[Tensor, "b 3 r r"], Float[Tensor, "b 1 r r"]], Float[Tensor, "b e 3 r r"]]:
    """The object's reference with its opacity, and its further pictures, each changed by a draw of its own; `seed` is
    the step's.

    The batch may be a part of the step's samples: its rows, by their positions, are changed as they are in the whole.
    """
    first_row, size, jitter = int(batch.position[0]) % params.batch_size, params.batch_size, params.colour_jitter
    augment = partial(augment_reference, affine=affine, colour_jitter=jitter)
    reference = augment(batch.reference, batch.opacity, seed=seed, first_row=first_row, batch_size=size)
    count = batch.more.shape[1]
    if count == 0:
        return reference, batch.more
    pictures, opacity = batch.more.flatten(0, 1), batch.more_opacity.flatten(0, 1)
    more, _ = augment(pictures, opacity, seed=seed + 1, first_row=first_row * count, batch_size=size * count)
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
