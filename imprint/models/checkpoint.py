"""Models on disk: one folder per part in the libraries' own layout, and `imprint.json`, which says what they are.

No times, run ids or paths are written: the same weights give the same bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from imprint.core.errors import InputError
from imprint.core.files import write_json_atomic
from imprint.models.model import ImprintModel, ObjectEncoder, build_model
from imprint.models.presets import Preset, build_scratch_preset

FORMAT_VERSION = 2  # 1: its preset is the arguments of `build_scratch_preset`
ENCODER_PARTS = ("backbone", "adapter")


def compute_weights_digest(module: nn.Module) -> str:
    """sha256 in hex over the names, types, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(
    model: ImprintModel,
    directory: Path,
    *,
    stage: str,
    extra: Mapping[str, Any],
    parts: Iterable[str] | None = None,
    half_precision: bool = False,
) -> None:
    """Write `parts` of the model, by default all, and the card `imprint.json`; `extra` goes into the card.

    half_precision: weights are stored as float16; the digests are those of what `load_model` makes of them (float32).
    """
    transformers_logging.disable_progress_bar()
    digests = {}
    for part in model.parts if parts is None else parts:
        module = getattr(model, part)
        if half_precision:
            module = copy.deepcopy(module).half()
        module.save_pretrained(directory / part)
        digests[part] = compute_weights_digest(module.float() if half_precision else module)
    card = {"format_version": FORMAT_VERSION, "stage": stage, "preset": asdict(model.preset), "digests": digests}
    write_json_atomic(directory / "imprint.json", card | dict(extra))


def load_card(directory: Path) -> dict[str, Any]:
    """`imprint.json` of a model folder; `InputError` if it is missing or of another version."""
    path = directory / "imprint.json"
    try:
        card = json.loads(path.read_text())
    except OSError:
        remedy = "train one with `dvc repro`, or name checkpoints/base"
        raise InputError(f"{directory} holds no model (no imprint.json); {remedy}") from None
    except json.JSONDecodeError:
        raise InputError(f"{path} is damaged; delete {directory} and run `dvc repro`") from None
    if card.get("format_version") not in (1, FORMAT_VERSION):
        raise InputError(f"{path} has format version {card.get('format_version')}, not {FORMAT_VERSION}; retrain it")
    return card


def load_preset(directory: Path) -> Preset:
    """The preset of the model in `directory`."""
    card = load_card(directory)
    build = build_scratch_preset if card["format_version"] == 1 else Preset
    try:
        return build(**card["preset"])
    except TypeError:
        raise InputError(f"{directory}/imprint.json describes another kind of model; retrain it") from None


def load_model(directory: Path, preset: Preset | None = None, *, seed: int = 0) -> ImprintModel:
    """A whole model, in evaluation mode; `InputError` if a part is missing or is not the one that the card records.

    preset: of the model to build, where it is not the folder's own: an appearance flow that the folder has not is a new
    one, from the seed.
    """
    model = build_model(preset or load_preset(directory), seed=seed)
    for part in model.parts:
        if preset is None or not is_new_flow(part, directory):
            load_part(model, part, directory)
    return model


def is_new_flow(part: str, directory: Path) -> bool:
    """Whether `part` is an appearance flow that the model in `directory` was trained without."""
    return part == "appearance_flow" and part not in load_card(directory).get("digests", {})


def load_encoder(directory: Path) -> ObjectEncoder:
    """Backbone and adapter of any model folder, in evaluation mode; errors as in `load_model`."""
    encoder = ObjectEncoder(load_preset(directory))
    for part in ENCODER_PARTS:
        load_part(encoder, part, directory)
    return encoder.eval()


def load_part(model: ImprintModel | ObjectEncoder, part: str, directory: Path) -> None:
    """Replace one part's weights by those in `directory`, checked against the digest that its card records."""
    recorded = load_card(directory).get("digests", {}).get(part)
    if recorded is None:
        raise InputError(f"{directory} holds no {part}; give a folder that the stage wrote whole")
    path = directory / part
    module = getattr(model, part)
    transformers_logging.disable_progress_bar()
    try:
        weights = type(module).from_pretrained(path, local_files_only=True, use_safetensors=True).state_dict()
    except (OSError, SafetensorError):
        raise InputError(f"{path} cannot be read; delete {directory} and run `dvc repro`") from None
    try:
        module.load_state_dict(weights)
    except RuntimeError:
        raise InputError(f"{path} does not fit preset {model.preset.name}; train both stages with one preset") from None
    check_digest(part, module, recorded=recorded, source=str(directory / "imprint.json"))


def check_digest(part: str, module: nn.Module, *, recorded: str, source: str) -> None:
    """`InputError` that names both digests if the module's weights are not the recorded ones."""
    found = compute_weights_digest(module)
    if found != recorded:
        raise InputError(f"{part}: its digest is {found}, but {source} records {recorded}; restore it or retrain")
