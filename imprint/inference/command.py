"""`imprint composite`: all is checked before the model is loaded, and the picture appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imprint.core.errors import InputError
from imprint.core.masks import MASK_LEVELS, MaskLevel
from imprint.core.pixels import save_image
from imprint.inference.inputs import check_output, load_request


def composite_files(
    object_paths: Sequence[Path],
    background_path: Path,
    *,
    mask_path: Path,
    output_path: Path,
    level: str,
    model: str,
    seed: int,
    steps: int | None,
    guidance: float | None,
    draws: int | None,
    root: Path = Path("."),
) -> None:
    """Put the object, of which there may be several views, into the background where the mask is white.

    `InputError` for anything the user can mend.
    """
    check_output(output_path)
    if any(value is not None and value < 1 for value in (steps, guidance, draws)):
        raise InputError("--steps, --guidance and --draws must be at least 1")
    params_path = root / "params.yaml"
    request = load_request(
        object_paths, background_path, mask_path, params_path=params_path, level=_parse_level(level), seed=seed
    )
    from imprint.inference.loading import load_compositor

    compositor = load_compositor(model, root)
    save_image(output_path, compositor.composite_batch([request], steps=steps, guidance=guidance, draws=draws)[0])


def _parse_level(level: str) -> MaskLevel:
    for known in MASK_LEVELS:
        if level == known:
            return known
    raise InputError(f"--mask-level {level} is unknown; use one of {', '.join(MASK_LEVELS)}")
