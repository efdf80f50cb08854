"""One training step without data, weights or a GPU: the stage's own loss on torch's meta device, and what it allocates.

Tensors on the meta device have shapes and no values, so the full-size model runs in seconds on any machine. What is
counted is what the real step does: `Task.compute_losses` and its backward pass. Two things that a GPU does and the
meta device does not are put in by hand (`GpuRules`): bfloat16 by autocast's rules, and fused attention.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from imprint.core.params import Training
from imprint.data import CompositingBatch, IdentityBatch
from imprint.models import ImprintModel, Preset
from imprint.models.freezing import apply_freeze_map
from imprint.training.noising import Noising
from imprint.training.session import prepare_model
from imprint.training.tasks import Task
from imprint.training.validation import NUM_PICTURES

META = torch.device("meta")
# an index by a mask, which on the meta device has no values, takes all: every sample has its most pictures
ALL_TRUE = _config.patch(meta_nonzero_assume_all_nonzero=True)  # pyright: ignore[reportAttributeAccessIssue]
# of autocast's lists for CUDA, those that these models call
_IN_BFLOAT16 = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention}
_IN_FLOAT32 = {F.group_norm, F.layer_norm}


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """flops: type of the numbers => floating point operations of forward and backward, of matrix products, convolutions
    and attention alone (two per multiply-add); forward_bytes: what the backward pass needs, at the end of the forward
    pass; peak_bytes: the most that lives at once, gradients included, weights, averages and moments not."""

    flops: dict[str, int]
    forward_bytes: int
    peak_bytes: int


def build_meta_model(
    preset: Preset, task: Task, *, params: Training, from_scratch: bool, train_middle_block: bool
) -> ImprintModel:
    """The model in training as the stage sets it up, without weights."""
    with META:
        model = ImprintModel(preset)
        prepare_model(model, params, device=META)
    apply_freeze_map(
        model,
        task.stage,
        from_scratch=from_scratch,
        train_middle_block=train_middle_block,
        rates=params.learning_rate.model_dump(),
    )
    return model.train()


def count_step(model: ImprintModel, task: Task, *, batch_size: int, bfloat16: bool) -> StepCount:
    """Count one forward and backward pass of `batch_size` samples.

    The model is a `build_meta_model`, or, for comparison, a real one on the CPU.
    """
    batch, noising = build_batch(model, task, batch_size)
    known = [*model.parameters(), *model.buffers(), *vars(batch).values(), *vars(noising).values()]
    meter = Meter(value for value in known if isinstance(value, Tensor))
    with meter, GpuRules(bfloat16=bfloat16), ALL_TRUE:
        loss = task.compute_losses(model, batch, noising).mean()
        forward_bytes = meter.live_bytes
        # loss.backward() would suspend the rules, and gradient checkpointing computes again what it did under them
        torch.autograd.backward(get_gradient_edge(loss), torch.ones_like(loss))
    model.zero_grad(set_to_none=True)
    return StepCount(flops=dict(meter.flops), forward_bytes=forward_bytes, peak_bytes=meter.peak_bytes)


def count_pictures(model: ImprintModel) -> int:
    """The most bytes that live at once while the validation pictures are decoded, the last step of making them."""
    preset = model.preset
    latents = torch.empty(NUM_PICTURES, preset.latent_channels, preset.latent_px, preset.latent_px, device=model.device)
    meter = Meter([*model.parameters(), *model.buffers(), latents])
    with torch.no_grad(), meter, GpuRules(bfloat16=False):
        model.codec.decode(latents)
    return meter.peak_bytes


def build_batch(model: ImprintModel, task: Task, batch_size: int) -> tuple[Any, Noising]:
    """A batch of the stage's shapes on the model's device; on the meta device its values are nothing at all."""
    preset, reference_px, size_px = model.preset, model.preset.reference_px, model.preset.size_px
    more = preset.num_pictures - 1
    with model.device:
        shared = {
            "position": torch.arange(batch_size),
            "kind": torch.zeros(batch_size, dtype=torch.long),
            "reference": torch.zeros(batch_size, 3, reference_px, reference_px),
            "opacity": torch.zeros(batch_size, 1, reference_px, reference_px),
            "more": torch.zeros(batch_size, more, 3, reference_px, reference_px),
            "more_opacity": torch.zeros(batch_size, more, 1, reference_px, reference_px),
            "present": torch.ones(batch_size, more, dtype=torch.bool),
        }
        picture = torch.zeros(batch_size, 3, size_px, size_px)
        noising = Noising(
            timestep=torch.zeros(batch_size, dtype=torch.long),
            noise=torch.zeros(batch_size, preset.latent_channels, preset.latent_px, preset.latent_px),
            is_null=torch.zeros(batch_size, dtype=torch.bool),
        )
        if task.stage == "identity":
            return IdentityBatch(**shared, target=picture), noising
        hole = torch.ones(batch_size, 1, size_px, size_px, dtype=torch.bool)
        places = {"is_single": noising.is_null, "level": noising.timestep, "hidden": noising.is_null}
        pictures = {"scene": picture, "background": picture, "hole": hole, "mask": hole}
        return CompositingBatch(**shared, **places, **pictures), noising


class GpuRules(TorchFunctionMode):
    """What a GPU would compute in: products in bfloat16 and norms in float32 where gradients are kept (a VAE is always
    in float32 and keeps none), and attention that never stores its matrix."""

    def __init__(self, *, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.bfloat16 and torch.is_grad_enabled() and (func in _IN_BFLOAT16 or func in _IN_FLOAT32):
            dtype = torch.bfloat16 if func in _IN_BFLOAT16 else torch.float32
            args = [_cast(value, dtype) for value in args]
            kwargs = {key: _cast(value, dtype) for key, value in kwargs.items()}
        if func is F.scaled_dot_product_attention and args[0].device == META:
            needs_gradient = any(value.requires_grad for value in args[:3])
            fused = torch.ops.aten._scaled_dot_product_efficient_attention
            return fused(*args[:3], kwargs.get("attn_mask"), needs_gradient)[0]
        return func(*args, **kwargs)


class Meter(TorchDispatchMode):
    """Adds up the floating point operations below it, and the bytes of the storages that live, by torch's own formulas.

    A storage counts from the operation that makes it until Python and autograd have let go of it.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.live_bytes = self.peak_bytes = 0
        self._kept = list(known)  # their storages' addresses stay theirs
        self._known = {tensor.untyped_storage()._cdata for tensor in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            dtype = next(value.dtype for value in tree_leaves(args) if isinstance(value, Tensor))
            self.flops[str(dtype).removeprefix("torch.")] += formula(*args, **kwargs, out_val=results)
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known.add(address)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, address, num_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self.live_bytes -= num_bytes


def count_bytes(tensor: Tensor) -> int:
    """Of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
