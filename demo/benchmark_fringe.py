"""How much of the background is left in the colours of an object's edge, before and after they are estimated.

    python -m demo.benchmark_fringe

Each test case's reference, an object with exact opacity and its own colours, is put over the case's empty scene, as it
is and blurred a little, and compressed; so the object's true colour is known in every mixed pixel. It is then cut out,
with the exact mask (opacity from a half on) and with the one that the network of params.yaml finds. The fringe error is
the mean difference from the true colour, of 255, over the mask's rim: its pixels within 2 px of its edge, but for those
that the object does not reach (opacity below 0.05).
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import typer

from imprint.core.errors import InputError
from imprint.core.foreground import estimate_foreground
from imprint.core.params import load_params
from imprint.core.pixels import decode_image, encode_image
from imprint.segmentation import build_session

if TYPE_CHECKING:
    from imprint.segmentation.session import ObjectSession

Errors = dict[str, tuple[float, float]]  # as found, estimated
ARCHIVE = Path(__file__).with_name("assets") / "cases.tar"
REFERENCE = "reference_045.png"
RIM_PX = 2
MIN_OPACITY = 0.05
SOFTNESS_PX = {"sharp edge": 0.0, "soft edge": 0.7}  # sigma of the blur
ROW = "{:12} {:12} {:>7} {:>9} {:>9}"


def read_cases(archive: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reference RGBA and plate RGB of each case, float32 in [0, 255]."""
    if not archive.is_file():
        raise InputError(f"there is no archive {archive}; render it with python -m demo.render cases")
    with tarfile.open(archive) as tar:
        parts = {
            info.name: tar.extractfile(info) for info in tar if info.name.endswith((f"/{REFERENCE}", "/plate.png"))
        }
        images = {name: decode_image(file.read(), name).astype(np.float32) for name, file in parts.items() if file}
    for folder in sorted({name.rsplit("/", 1)[0] for name in images}):
        yield images[f"{folder}/{REFERENCE}"], images[f"{folder}/plate.png"]


def photograph(reference: np.ndarray, plate: np.ndarray, sigma_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture RGB uint8, the object's true colours float32 and its opacity [h, w] of the reference over the plate."""
    opacity = reference[..., 3] / 255
    premultiplied = reference[..., :3] * opacity[..., None]
    if sigma_px:
        opacity, premultiplied = (cv2.GaussianBlur(part, (0, 0), sigma_px) for part in (opacity, premultiplied))
    mixed = np.clip(premultiplied + plate * (1 - opacity[..., None]), 0, 255)
    picture = decode_image(encode_image(np.rint(mixed).astype(np.uint8), ".jpg", 95), "own JPEG")
    return picture, premultiplied / np.maximum(opacity[..., None], 1e-3), opacity


def compute_fringe_error(colours: np.ndarray, truth: np.ndarray, mask: np.ndarray, opacity: np.ndarray) -> float:
    """Mean difference, of 255, over the mask's rim; see the module."""
    kernel = np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8)
    rim = mask & (cv2.erode(mask.astype(np.uint8), kernel) == 0) & (opacity >= MIN_OPACITY)
    return float(np.abs(colours.astype(np.float32) - truth)[rim].mean())


def cut_out(reference: np.ndarray, plate: np.ndarray, sigma_px: float, *, session: ObjectSession) -> Errors:
    """Fringe errors as found and estimated, by the mask's name; a mask that misses the object has none."""
    picture, truth, opacity = photograph(reference, plate, sigma_px)
    masks = {"exact mask": opacity >= 0.5, "network's": session.predict([picture])[0] >= session.threshold}
    errors: Errors = {}
    for name, mask in masks.items():
        if (mask & masks["exact mask"]).any():
            shown = picture, estimate_foreground(picture, mask)
            before, after = (compute_fringe_error(colours, truth, mask, opacity) for colours in shown)
            errors[name] = before, after
    return errors


def benchmark(archive: Path) -> None:
    """Print the table."""
    session = build_session(load_params().segment_objects)
    cases = list(read_cases(archive))
    print(ROW.format("edge", "mask", "cases", "as found", "estimated"))
    for softness, sigma_px in SOFTNESS_PX.items():
        results = [cut_out(reference, plate, sigma_px, session=session) for reference, plate in cases]
        for name in ("exact mask", "network's"):
            values = [errors[name] for errors in results if name in errors]
            before, after = np.mean(values, axis=0)
            print(ROW.format(softness, name, len(values), f"{before:.2f}", f"{after:.2f}"))


def main(archive: Annotated[Path, typer.Option(help="tar with cases/<name>/{reference,plate}.png")] = ARCHIVE) -> None:
    """Fringe error on the demo's test cases, before and after the estimate."""
    try:
        benchmark(archive)
    except InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
