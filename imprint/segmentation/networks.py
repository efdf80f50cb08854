"""Which networks there are, what picture each one takes, and which are refused. Loads no rembg.

`imprint_small.onnx` is ours: a U-Net of 0.35 M parameters at 128 x 128 px, made by `demo/train_segmenter.py` (7,500
steps of 16 pictures, half an hour of one core) from 3,300 views and 2,200 scenes of 1,100 rendered objects and 2,160
pictures of scenes with up to four, none with an object of the demo clips. `demo/benchmark_segmenter.py` prints its IoU
on those clips. It knows toys and packages on floors; for photographs name a rembg model. Objects that touch are one
foreground to it: see `imprint/segmentation/separator.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from imprint.core.errors import InputError
from imprint.core.files import compute_file_digest
from imprint.core.params import Count, Positive, Section, parse_section

SHIPPED_NAME = "imprint-small"
SHIPPED_PATH = Path(__file__).with_name("imprint_small.onnx")
REMEDY = f"set segment_objects.model to {SHIPPED_NAME} (shipped, no download) or to the path of an ONNX file"

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """How to feed a network: square pictures of `size_px` (a fixed size in the file wins), `(x / max - mean) / std`.

    logits: whether its output needs a sigmoid; None: found by trying when it is opened.
    """

    size_px: int = 320
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    logits: bool | None = None
    commercial: bool = True


SHIPPED = Network(size_px=128, logits=False)
_BIREFNET = Network(size_px=1024, logits=True)
_ISNET = Network(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), logits=False)

# rembg's own input sizes, means and outputs (rembg/sessions/*.py, 2.0.86).
REMBG_NETWORKS = {
    "u2net": Network(logits=False),
    "u2netp": Network(logits=False),
    "u2net_human_seg": Network(logits=False),
    "silueta": Network(logits=False),
    "isnet-general-use": _ISNET,
    "isnet-anime": Network(1024, IMAGENET_MEAN, (1.0, 1.0, 1.0), logits=False),
    "birefnet-general": _BIREFNET,
    "birefnet-general-lite": _BIREFNET,
    "birefnet-general-fp16": _BIREFNET,
    "birefnet-portrait": _BIREFNET,
    "birefnet-dis": _BIREFNET,
    "birefnet-hrsod": _BIREFNET,
    "birefnet-cod": _BIREFNET,
    "birefnet-massive": _BIREFNET,
    "bria-rmbg": Network(1024, commercial=False),
}

# What is assumed of a file of the user's own, by the family that its name begins with, or that its settings name. Files
# of one family differ in whether the sigmoid is in them: that is tried.
FAMILIES = {
    "u2net": Network(),
    "silueta": Network(),
    "isnet-anime": Network(1024, IMAGENET_MEAN, (1.0, 1.0, 1.0)),
    "isnet": replace(_ISNET, logits=None),
    "birefnet": replace(_BIREFNET, logits=None),
    "rmbg": Network(1024),
}

REFUSED = {
    "withoutbg": "sends your pictures to a remote service",
    "atlascloud": "sends your pictures to a remote service",
    "sam": "needs a prompt for every picture",
    "u2net_cloth_seg": "finds clothes, not objects",
    "u2net_custom": "is rembg's name for a file of your own",
    "dis_custom": "is rembg's name for a file of your own",
    "ben_custom": "is rembg's name for a file of your own",
}


def find_network(model: str, *, allow_noncommercial: bool) -> Network:
    """The network that `segment_objects.model` names. `InputError` if it is refused, unknown, or a missing file."""
    if model == SHIPPED_NAME:
        return SHIPPED
    if model in REFUSED:
        raise InputError(f"segment_objects.model: {model} {REFUSED[model]}, which is not supported; {REMEDY}")
    if model in REMBG_NETWORKS:
        network = REMBG_NETWORKS[model]
        if not network.commercial and not allow_noncommercial:
            raise InputError(
                f"segment_objects.model: the weights of {model} are not for commercial use; "
                f"set segment_objects.allow_noncommercial to true if that is fine, or {REMEDY}"
            )
        return network
    if not is_path(model):
        known = ", ".join([SHIPPED_NAME, *REMBG_NETWORKS])
        raise InputError(f"segment_objects.model: unknown model {model!r}; use {known}, or the path of an ONNX file")
    if not Path(model).is_file():
        raise InputError(f"segment_objects.model: there is no file {model}; put the ONNX file there, or {REMEDY}")
    return describe_file(Path(model))


class FileSettings(Section):
    """`net.json` beside `net.onnx`: how the file wants its pictures, where its family's way is not it."""

    family: Literal["u2net", "silueta", "isnet-anime", "isnet", "birefnet", "rmbg"] | None = None
    size_px: Count | None = None
    mean: Colour | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    logits: bool | None = None


def describe_file(path: Path) -> Network:
    """How to feed a file of the user's own: by its settings, else by the rembg model or family that its name tells of,
    else as U2-Net. `InputError` names a wrong key of the settings."""
    settings = load_settings(path)
    known = REMBG_NETWORKS.get(path.stem) or FAMILIES[find_family(path) or "u2net"]
    network = FAMILIES[settings.family] if settings.family else known
    given = settings.model_dump(exclude={"family"}, exclude_none=True)
    return replace(network, commercial=True, **given)


def find_family(path: Path) -> str | None:
    """The family that a file's name begins with."""
    plain = path.stem.lower().replace("_", "-")
    return next((family for family in FAMILIES if plain.startswith(family)), None)


def load_settings(path: Path) -> FileSettings:
    """Of an ONNX file; none where there is no such file."""
    file = path.with_suffix(".json")
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        return FileSettings()
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); mend it, or take it away") from None
    return parse_section(FileSettings, values, str(file))


def explain_guess(path: Path, network: Network) -> str:
    """A line on what is assumed of a file that nothing is known of; empty if its name or its settings tell."""
    if path.with_suffix(".json").is_file() or path.stem in REMBG_NETWORKS or find_family(path):
        return ""
    return (
        f"segment_objects.model: {path} is fed as U2-Net is (mean {network.mean}, std {network.std}); if it is of "
        f"another family ({', '.join(FAMILIES)}), say so in {path.with_suffix('.json').name} beside it, for example "
        '{"family": "isnet"}'
    )


def identify(model: str) -> str:
    """What masks depend on: a name, or a file's content with how it is fed."""
    return f"{compute_file_digest(Path(model))} {describe_file(Path(model))}" if Path(model).is_file() else model


def is_path(model: str) -> bool:
    """Whether `segment_objects.model` is meant as a file, not as a name."""
    return model.endswith(".onnx") or "/" in model
