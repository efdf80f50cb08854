"""How well a segmentation network finds the demo clips' objects, which the shipped one was not trained on.

    python -m demo.benchmark_segmenter

Prints, per kind of clip, the mean and median IoU over frames with the exact masks (all objects against the rest; an
empty frame found empty counts as 1), and the share of frames below 0.5. The chance line is what the best constant mask
reaches: the pixels that are foreground in at least some share of all frames.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer

from demo.unpack import unpack
from imprint.core.errors import InputError
from imprint.core.params import load_params
from imprint.core.pixels import load_image
from imprint.segmentation import build_session

ARCHIVE = Path(__file__).with_name("assets") / "clips.tar"
ROW = "{:12} {:>7} {:>9} {:>11} {:>11}"


def compute_ious(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union per frame of two bool stacks [n, h, w]; two empty masks agree: 1."""
    overlap, union = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
    return np.where(union > 0, overlap / np.maximum(union, 1), 1.0)


def find_constant_mask(truth: np.ndarray) -> np.ndarray:
    """The bool mask [h, w] of highest mean IoU with `truth` [n, h, w] among the level sets of its mean."""
    mean = truth.mean(0)
    masks = [mean >= share for share in np.arange(0.05, 1.0, 0.05)]
    return max(masks, key=lambda mask: compute_ious(np.broadcast_to(mask, truth.shape), truth).mean())


def read_frames(path: Path) -> list[np.ndarray]:
    """All frames of a video, RGB uint8."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.ascontiguousarray(read[1][..., ::-1]))
    return frames


def read_clips(archive: Path) -> Iterator[tuple[str, list[np.ndarray], np.ndarray]]:
    """Kind, frames and foreground bool [n, h, w] of each clip."""
    if not archive.is_file():
        raise InputError(f"there is no archive {archive}; render it with python -m demo.render clips")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clips"
        unpack(archive, folder)
        for record in json.loads((folder / "clips.json").read_text()):
            frames = read_frames(folder / "clips" / f"{record['name']}.mp4")
            stack = load_image(folder / "masks" / f"{record['name']}.png")[..., 0]
            yield record["kind"], frames, np.stack(np.split(stack, record["num_frames"])) > 0


def benchmark(model: str | None, archive: Path) -> None:
    """Print the table for `model`, by default that of params.yaml."""
    params = load_params().segment_objects
    params = params if model is None else params.model_copy(update={"model": model})
    session = build_session(params, threads=1)
    ious: dict[str, list[np.ndarray]] = {}
    truths, seconds = [], 0.0
    for kind, frames, truth in read_clips(archive):
        start_s = time.process_time()
        scores = session.predict(frames)
        seconds += time.process_time() - start_s
        ious.setdefault(kind, []).append(compute_ious(np.stack(scores) >= params.threshold, truth))
        truths.append(truth)
    print(ROW.format("kind", "frames", "mean IoU", "median IoU", "below 0.5"))
    for kind, values in [*sorted(ious.items()), ("all", [v for group in ious.values() for v in group])]:
        _print_row(kind, np.concatenate(values))
    truth = np.concatenate(truths)
    _print_row("chance", compute_ious(np.broadcast_to(find_constant_mask(truth), truth.shape), truth))
    print(f"{len(truth) / seconds:.0f} frames per second of one core")


def main(
    model: Annotated[str | None, typer.Option(help="as segment_objects.model; default: that of params.yaml")] = None,
    archive: Annotated[Path, typer.Option(help="tar with clips/, masks/ and clips.json")] = ARCHIVE,
) -> None:
    """Mean IoU on the demo clips."""
    try:
        benchmark(model, archive)
    except InputError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _print_row(kind: str, values: np.ndarray) -> None:
    numbers = (f"{values.mean():.4f}", f"{np.median(values):.4f}", f"{(values < 0.5).mean():.1%}")
    print(ROW.format(kind, len(values), *numbers))


if __name__ == "__main__":
    typer.run(main)
