"""Train the network that tells touching objects apart and export it; see `imprint/segmentation/separator.py`.

    python -m demo.train_separator --data work/segmentation --world work/world/objects --output imprint_separator.onnx

Needs the `render` extra's `onnx` package. The last eighth of the scenes, by their seeds, is kept out of the training
and measured at the end: how much of a mask the answers get wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from demo.segmenter_data import Pool, Scenes, build_backgrounds, load_world
from demo.separator_data import (
    LabelledScenes,
    build_sample,
    draw_question,
    list_blobs,
    list_parts,
    load_labelled,
    wear_mask,
)
from demo.train_segmenter import MAX_RATE, SmallUNet, compute_dice, export_onnx, fit, load_network
from imprint.core.files import write_bytes_atomic
from imprint.segmentation.separator import NUM_PLANES, SIDE_PX, build_planes, find_deepest

LIMITS = (0.03, 0.05, 0.08, 0.11, 0.14, 0.18, 0.24)  # of `touching.max_foreign_share`, to choose from
WIDTHS = (8, 16, 32, 64, 80)  # channels at 80, 40, 20, 10 and 5 px


class QuestionDataset(Dataset):
    """Question i follows from (seed, i) alone."""

    def __init__(self, scenes: LabelledScenes, pool: Pool, *, seed: int, count: int) -> None:
        self.scenes, self.pool, self.seed, self.count = scenes, pool, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        sample = draw_question(self.scenes, self.pool, np.random.default_rng([self.seed, 8, index]))
        return sample.image, sample.mask, sample.place, sample.answer


def compute_batch_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Binary cross-entropy within the masks, each counting the same, plus Dice of the object and of what is foreign."""
    images, masks, places, answers = batch
    planes = torch.from_numpy(build_planes(images.numpy(), masks.numpy(), places.numpy()))
    logits = model(planes.contiguous(memory_format=torch.channels_last))[:, 0].float()
    inside, target = masks.float() / 255.0, answers.float() / 255.0
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside
    own = torch.sigmoid(logits) * inside
    dice = compute_dice(own, target) + compute_dice(inside - own, inside - target)
    return (entropy.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).mean() + 0.5 * (2 - dice).mean()


def split_scenes(scenes: LabelledScenes) -> tuple[LabelledScenes, LabelledScenes]:
    """For the training, and held out: the last eighth of the seeds."""
    seeds = sorted(set(scenes.seeds))
    first = seeds[len(seeds) * 7 // 8]
    held_out = np.array([seed >= first for seed in scenes.seeds])
    return _choose(scenes, ~held_out), _choose(scenes, held_out)


def _choose(scenes: LabelledScenes, chosen: np.ndarray) -> LabelledScenes:
    return LabelledScenes(scenes.images[chosen], scenes.labels[chosen], np.array(scenes.seeds)[chosen].tolist())


@torch.no_grad()
def measure_errors(model: SmallUNet, scenes: LabelledScenes) -> dict[str, tuple[int, float]]:
    """How many blobs of one and of several objects, and the mean share of a blob's pixels that is answered wrongly."""
    errors: dict[str, list[float]] = {"one": [], "several": []}
    for image, labels in zip(scenes.images, scenes.labels, strict=True):
        for blob in list_blobs(labels):
            sample = build_sample(image, labels, blob, np.random.default_rng(0))
            planes = build_planes(sample.image[None], sample.mask[None], sample.place[None])
            found = model(torch.from_numpy(planes))[0, 0].numpy() > 0
            wrong = (found != (sample.answer > 127))[sample.mask > 127].mean()
            errors["several" if len(list_parts(labels, blob)) > 1 else "one"].append(float(wrong))
    return {kind: (len(values), float(np.mean(values))) for kind, values in errors.items() if values}


@torch.no_grad()
def judge_masks(model: SmallUNet, scenes: LabelledScenes) -> np.ndarray:
    """Of each blob, asked from its deepest place, the foreign share by the truth and by the answer, [n, 2]."""
    rng, shares = np.random.default_rng(0), list[tuple[float, float]]()
    for image, labels in zip(scenes.images, scenes.labels, strict=True):
        for blob in list_blobs(labels):
            mask = wear_mask(blob, rng)
            sample = build_sample(image, labels, mask, rng, at=find_deepest(mask))
            planes = build_planes(sample.image[None], sample.mask[None], sample.place[None])
            answer = torch.sigmoid(model(torch.from_numpy(planes))[0, 0]).numpy()
            inside = sample.mask > 127
            shares.append((float((sample.answer[inside] <= 127).mean()), float(1 - answer[inside].mean())))
    return np.array(shares)


def main(
    data: Annotated[Path, typer.Option(help="folder with scenes/")],
    world: Annotated[Path, typer.Option(help="folder of a rendered world, for its objects")],
    output: Annotated[Path, typer.Option(help="the ONNX file to write")],
    steps: int = 12000,
    batch_size: int = 16,
    seed: int = 0,
    threads: int = 1,
    workers: Annotated[int, typer.Option(help="processes that draw the pictures")] = 1,
    bfloat16: Annotated[bool, typer.Option(help="0.6 of the time, on processors with AVX512_BF16")] = False,
    start: Annotated[Path | None, typer.Option(help="a network to go on from")] = None,
    max_rate: float = MAX_RATE,
) -> None:
    """Train, measure on the held-out scenes, export."""
    torch.set_num_threads(threads)
    training, held_out = split_scenes(load_labelled(data / "scenes"))
    nothing = Scenes(training.images[:0], training.labels[:0])
    pool = Pool(nothing, load_world(world)[1], build_backgrounds(seed))
    torch.manual_seed(seed)
    dataset = QuestionDataset(training, pool, seed=seed, count=steps * batch_size)
    loader = DataLoader(dataset, batch_size, num_workers=workers)
    model = SmallUNet(WIDTHS, inputs=NUM_PLANES)
    if start is not None:
        model = load_network(model, start, loader, compute_batch_loss)
    model = fit(model, loader, compute_batch_loss, title="train separator", max_rate=max_rate, bfloat16=bfloat16)
    write_bytes_atomic(output, export_onnx(model, name="question", inputs=NUM_PLANES, side_px=SIDE_PX))
    print(f"{output.stat().st_size / 1e6:.2f} MB, trained on {len(training.images)} pictures")
    for kind, (count, error) in measure_errors(model, held_out).items():
        print(f"held-out masks of {kind}: {count}, {error:.2%} of their pixels wrong")
    truth, found = judge_masks(model, held_out).T
    for limit in LIMITS:
        missed, blamed = (found[truth > 0.1] <= limit).mean(), (found[truth < 0.02] > limit).mean()
        print(f"max_foreign_share {limit}: {missed:.2%} of the masks of several missed, {blamed:.2%} of one blamed")


if __name__ == "__main__":
    typer.run(main)
