"""`imprint composite`: all is checked before the model is loaded, and the picture appears whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.inference.inputs import Mode, check_output, list_views, load_request

CUT_SHADOW_SHARE = 0.3  # of the object's shadow outside the hole: above it the user is told


def composite_files(
    object_paths: Sequence[Path],
    background_path: Path,
    *,
    mask_path: Path,
    output_path: Path,
    level: str,
    model: str,
    seed: int,
    mode: str | None = None,
    shadow_reach: float = 0.0,
    root: Path = Path("."),
    **sampling: float | None,
) -> None:
    """Put the object, of which there may be several views, into the background where the mask is white.

    A folder among `object_paths` stands for the pictures in it. sampling: see `imprint.models.Sampling`. `InputError`
    for anything the user can mend.
    """
    check_output(output_path)
    counts = (sampling.get(name) for name in ("steps", "guidance", "draws"))
    if any(value is not None and value < 1 for value in counts):
        raise InputError("--steps, --guidance and --draws must be at least 1")
    if not 0.0 <= shadow_reach <= 1.0:
        raise InputError(f"--shadow-reach {shadow_reach:g} is not between 0 and 1 (of the hole's longer side)")
    request = load_request(
        list_views(object_paths),
        background_path,
        mask_path,
        params_path=root / "params.yaml",
        level=_parse_level(level),
        seed=seed,
    )
    request = replace(request, mode=_parse_mode(mode), shadow_reach=shadow_reach)
    from imprint.inference.loading import load_compositor

    made = load_compositor(model, root).composite_batch([request], **sampling)[0]
    about = {"model": model, "level": request.level, "mode": mode, "seed": seed, "view": made.view + 1, **sampling}
    about |= {"shadow_reach": shadow_reach, "outside_unchanged": shadow_reach == 0}
    _save(output_path, made.picture, {name: value for name, value in about.items() if value is not None})
    if len(request.more_objects) and made.expected_error is not None:
        print(f"view {made.view + 1} of {1 + len(request.more_objects)} fits best and was taken")
    if shadow_reach > 0:
        print(f"the shadow may leave the mask by {shadow_reach:g} of its longer side: pixels outside it have changed")
    elif made.cut_shadow > CUT_SHADOW_SHARE:
        print("much of the shadow lies outside the mask: give it room by a larger mask, or by --shadow-reach 0.3")


def _save(path: Path, picture: np.ndarray, about: Mapping[str, Any]) -> None:
    """A PNG whose text `imprint` (JSON) says how it was made, and whether anything outside the mask has changed."""
    text, data = PngInfo(), io.BytesIO()
    text.add_itxt("imprint", json.dumps(about))
    Image.fromarray(picture).save(data, "png", pnginfo=text)
    write_bytes_atomic(path, data.getvalue())


def _parse_level(level: str) -> MaskLevel:
    for known in MASK_LEVELS:
        if level == known:
            return known
    raise InputError(f"--mask-level {level} is unknown; use one of {', '.join(MASK_LEVELS)}")


def _parse_mode(mode: str | None) -> Mode | None:
    for known in (None, *get_args(Mode)):
        if mode == known:
            return known
    raise InputError(f"--mode {mode} is unknown; use insert or replace")
