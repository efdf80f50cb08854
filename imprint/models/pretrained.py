"""A model that starts from published weights: structure from their own configuration, strict loading, a new adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from imprint.core.errors import InputError
from imprint.core.sources import Kind, Source, check_safetensors, fetch_source, load_strictly
from imprint.models.backbone import BACKBONES
from imprint.models.configs import Config
from imprint.models.model import ImprintModel, build_model
from imprint.models.presets import Preset, find_encoder

CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}


def load_pretrained(preset: Preset, sources: Mapping[Kind, Source], *, seed: int, root: Path) -> ImprintModel:
    """U-Net, VAE and backbone with the sources' weights; the adapter's are random, from the seed.

    `InputError`, one line with the remedy, for weights that cannot be had, a folder of another architecture, a pickle,
    and weights that differ from what their configuration asks for.
    """
    base, backbone = (fetch_source(sources[kind], root) for kind in ("base", "backbone"))
    model = build_model(resolve_preset(preset, base, backbone), seed)
    for part in ("unet", "vae"):
        getattr(model, part).load_state_dict(load_weights(CLASSES[part], base / part))
    load_backbone(model, backbone)
    return model


def load_base(model: ImprintModel, source: Source, root: Path) -> None:
    """Replace the U-Net's and the VAE's weights by the source's, into a model that was built for it."""
    folder = fetch_source(source, root)
    found = resolve_base(model.preset, folder)
    if (found.unet, found.vae) != (model.preset.unet, model.preset.vae):
        raise InputError(f"{source.name} is not the base that the encoder was trained with; train both with one base")
    for part in ("unet", "vae"):
        getattr(model, part).load_state_dict(load_weights(CLASSES[part], folder / part))


def load_backbone(model: ImprintModel, folder: Path) -> None:
    """The image encoder's weights."""
    _, model_class = BACKBONES[model.preset.backbone["model_type"]]
    model.backbone.load_state_dict(load_weights(model_class, folder))


def resolve_preset(preset: Preset, base: Path, backbone: Path) -> Preset:
    """The preset with the structure of the weights in two folders, which need not be the one that it states."""
    config = _read_config(backbone)
    if config.get("model_type") == "clip":  # both towers: the image's is taken
        config = {**config["vision_config"], "model_type": "clip_vision_model"}
    resolved = replace(resolve_base(preset, base), backbone=config)
    family = config.get("model_type")
    if family not in BACKBONES:
        raise InputError(f"{backbone} holds a {family}, not one of dinov2, clip; set weights.backbone to one of those")
    if find_encoder(resolved) != find_encoder(preset):
        raise InputError(f"{backbone} holds a {family}; set options.encoder to it, or weights.backbone to another")
    if preset.reference_px % config["patch_size"] != 0:
        raise InputError(
            f"{backbone} has patches of {config['patch_size']} px, which do not fill {preset.reference_px} px"
        )
    return resolved


def resolve_base(preset: Preset, base: Path) -> Preset:
    """The preset with the U-Net, the VAE and the noise schedule of a folder in diffusers' layout."""
    unet, vae = (_read_part_config(base / part, CLASSES[part].__name__) for part in ("unet", "vae"))
    if unet["in_channels"] != 4 or vae["latent_channels"] != 4:
        raise InputError(
            f"{base}/unet has {unet['in_channels']} input channels; IMPRINT's has four: name the base model itself, "
            "not its inpainting or depth variant"
        )
    if not isinstance(unet["cross_attention_dim"], int) or unet.get("addition_embed_type"):
        raise InputError(f"{base}/unet is of another generation (SDXL?); name one of the classes of SD 1.5 or 2.1")
    schedule = _read_json(base / "scheduler" / "scheduler_config.json")
    prediction = schedule.get("prediction_type", "epsilon")
    zero_snr = bool(schedule.get("rescale_betas_zero_snr", False))
    if zero_snr and prediction == "epsilon":
        raise InputError(
            f"{base}/scheduler predicts epsilon at a terminal SNR of zero, which says nothing; name another"
        )
    if schedule.get("num_train_timesteps", 1000) != 1000:
        raise InputError(
            f"{base}/scheduler has {schedule['num_train_timesteps']} timesteps, not 1000; name another base"
        )
    return replace(
        preset,
        unet=unet,
        vae=vae,
        prediction_type=prediction,
        zero_terminal_snr=zero_snr,
        beta_schedule=schedule["beta_schedule"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
    )


def load_weights(model_class: Any, folder: Path) -> dict[str, Tensor]:
    """The weights in a folder as `model_class` names them; `InputError` lists what is missing, too much, misshapen."""
    _quiet()
    options = {"low_cpu_mem_usage": True} if issubclass(model_class, (UNet2DConditionModel, AutoencoderKL)) else {}
    return load_strictly(model_class, folder, ignore=_is_of_text_tower, **options).state_dict()


def _read_part_config(folder: Path, class_name: str) -> Config:
    check_safetensors(folder)
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != class_name:
        raise InputError(
            f"{folder} holds a {config.get('_class_name')}, not a {class_name}; name a base like SD 1.5 or 2.1"
        )
    # the libraries' own marks and defaults are left to them
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _read_config(folder: Path) -> Config:
    check_safetensors(folder)
    config = _read_json(folder / "config.json")
    left_out = ("architectures", "dtype", "torch_dtype", "transformers_version")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in left_out}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError:
        raise InputError(f"{path} is missing; name a folder in diffusers' layout (unet/, vae/, scheduler/)") from None
    except json.JSONDecodeError:
        raise InputError(f"{path} is no JSON; download it again") from None


def _is_of_text_tower(key: str) -> bool:
    """What a whole CLIP has beside its image tower."""
    return key.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale"))


def _quiet() -> None:
    """Progress bars off, and the libraries' own tables of keys: ours says it in one line."""
    for library in (transformers_logging, diffusers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
