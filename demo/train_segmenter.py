"""Train the shipped segmentation network and export it to ONNX; see `imprint/segmentation/networks.py`.

    python -m demo.train_segmenter --data work/segmentation --world work/world/objects --output imprint_small.onnx

Needs the `render` extra's `onnx` package. The result follows from the data, the seed and the number of steps, on one
machine with one thread count. The last tenth of the scenes is kept out of the training and measured at the end.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from demo.segmenter_data import (
    SIZE_PX,
    Pool,
    Scenes,
    build_backgrounds,
    draw_sample,
    join_scenes,
    load_scenes,
    load_world,
)
from imprint.core.files import write_bytes_atomic
from imprint.core.progress import show_progress
from imprint.segmentation.networks import IMAGENET_MEAN, IMAGENET_STD

WIDTHS = (8, 16, 32, 64, 80)  # channels at 128, 64, 32, 16 and 8 px
MAX_RATE = 3e-3
WARMUP_STEPS = 100
EMA_DECAY = 0.99
CALIBRATION_BATCHES = 16
ComputeLoss = Callable[[nn.Module, list[Tensor]], Tensor]


class Block(nn.Module):
    """Residual pair of 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.layers(x)))


class SmallUNet(nn.Module):
    """U-Net with the mean of the deepest level added to it, so that each place knows the whole picture."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, *, inputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(inputs, widths[0]))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Sequential(*_conv(a, b, stride=2), Block(b)) for a, b in pairs)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], widths[-1], 1), nn.ReLU())
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(pairs))
        self.up = nn.ModuleList(nn.Sequential(*_conv(a, a)) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:  # [b c h w], normalised => logits [b 1 h w]
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        x = x + self.context(x)
        for narrow, up in zip(self.narrow, self.up, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(levels.pop() + x)
        return self.head(x)


class SampleDataset(Dataset):
    """Sample i follows from (seed, i) alone."""

    def __init__(self, pool: Pool, seed: int, count: int) -> None:
        self.pool, self.seed, self.count = pool, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return draw_sample(self.pool, np.random.default_rng([self.seed, index]))


def normalize(images: Tensor) -> Tensor:
    """uint8 [b h w 3] => float32 [b 3 h w], as rembg does it: picture / maximum, then mean and deviation."""
    x = images.permute(0, 3, 1, 2).float()
    x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def compute_loss(logits: Tensor, opacity: Tensor) -> Tensor:
    """Binary cross-entropy plus Dice per picture. logits: [b 1 h w]; opacity: [b h w] in [0, 1]."""
    logits = logits[:, 0].float()
    entropy = F.binary_cross_entropy_with_logits(logits, opacity)
    return entropy + 0.5 * (1 - compute_dice(torch.sigmoid(logits), opacity)).mean()


def compute_dice(found: Tensor, truth: Tensor) -> Tensor:
    """[b], of [b h w] in [0, 1]; close to 1 for both nearly empty."""
    return (2 * (found * truth).sum((1, 2)) + 20) / (found.sum((1, 2)) + truth.sum((1, 2)) + 20)


def train(
    pool: Pool,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    workers: int,
    bfloat16: bool,
    start: Path | None = None,
    max_rate: float = MAX_RATE,
) -> SmallUNet:
    """The averaged network after `steps` steps."""

    def compute_batch_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        images, opacities = batch
        return compute_loss(model(normalize(images)), opacities.float() / 255.0)

    torch.manual_seed(seed)
    loader = DataLoader(SampleDataset(pool, seed, steps * batch_size), batch_size, num_workers=workers)
    model = SmallUNet() if start is None else load_network(SmallUNet(), start, loader, compute_batch_loss)
    return fit(model, loader, compute_batch_loss, title="train segmenter", max_rate=max_rate, bfloat16=bfloat16)


def fit(
    model: SmallUNet,
    loader: DataLoader,
    compute_batch_loss: ComputeLoss,
    *,
    title: str,
    max_rate: float,
    bfloat16: bool,
) -> SmallUNet:
    """The averaged network after one step of AdamW, with warm-up and cosine, per batch of the loader."""
    steps, average = len(loader), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=max_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_rate, total_steps=steps, pct_start=min(WARMUP_STEPS / steps, 0.3), cycle_momentum=False
    )
    with show_progress(title, steps) as bar:
        for step, batch in enumerate(loader):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = compute_batch_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            _update_average(average, model, min(EMA_DECAY, (step + 1) / (step + 10)))
            bar.advance(note=f"loss {loss.item():.3f}")
    return average.eval()


@torch.no_grad()
def load_network(model: SmallUNet, path: Path, loader: DataLoader, compute_batch_loss: ComputeLoss) -> SmallUNet:
    """`model` with the weights of a network that `export_onnx` wrote, to go on from.

    The file has the norms folded into the convolutions, so their statistics are taken anew, from some of the batches.
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(path).graph
    values = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    convolutions = iter([node.input[1:3] for node in graph.node if node.op_type == "Conv"])
    batches, called, moments = list(islice(loader, CALIBRATION_BATCHES)), list[nn.Module](), dict[nn.Module, Tensor]()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        called.append(layer)
        x = inputs[0].transpose(0, 1).flatten(1)
        moments[layer] = moments.get(layer, torch.zeros(())) + torch.stack([x.mean(1), (x * x).mean(1)])

    def run(count: int) -> None:
        called.clear(), moments.clear()
        for batch in batches[:count]:
            compute_batch_loss(model, batch)

    model.eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    run(1)
    for layer, norm in pairwise([*called, nn.Identity()]):
        if isinstance(layer, nn.Conv2d):
            weight, bias = (values[name] for name in next(convolutions))
            layer.weight.copy_(weight)
            shift = norm.bias if isinstance(norm, nn.BatchNorm2d) else layer.bias
            assert shift is not None
            shift.copy_(bias)
    run(len(batches))
    for norm, sums in moments.items():
        if isinstance(norm, nn.BatchNorm2d):
            mean, square = sums / len(batches)
            variance = square - mean**2
            state = {"running_mean": mean, "running_var": variance, "weight": (variance + norm.eps).sqrt()}
            norm.load_state_dict({**norm.state_dict(), **state, "bias": norm.bias + mean})
    for hook in hooks:
        hook.remove()
    return model.train()


@torch.no_grad()
def compute_mean_iou(model: SmallUNet, scenes: Scenes) -> float:
    """Mean over pictures of the intersection over union at probability 0.5."""
    ious = []
    for image, mask in zip(scenes.images, scenes.masks, strict=True):
        found = model(normalize(torch.from_numpy(image)[None]))[0, 0].numpy() > 0
        truth = mask > 127
        ious.append((found & truth).sum() / max((found | truth).sum(), 1))
    return float(np.mean(ious))


def export_onnx(model: SmallUNet, *, name: str = "image", inputs: int = 3, side_px: int = SIZE_PX) -> bytes:
    """ONNX file: `name` float32 [b, inputs, side, side] => `probability` [b, 1, side, side]."""
    network = nn.Sequential(model, nn.Sigmoid()).eval()
    example = (torch.zeros(1, inputs, side_px, side_px),)
    axes = {name: {0: "batch"}, "probability": {0: "batch"}}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # Deprecated, but the newer exporter needs onnxscript too and writes local paths into the file.
        warnings.simplefilter("ignore", DeprecationWarning)
        path = Path(folder) / "network.onnx"
        options = {"opset_version": 17, "dynamic_axes": axes, "dynamo": False}
        torch.onnx.export(network, example, path, input_names=[name], output_names=["probability"], **options)
        return path.read_bytes()


def main(
    data: Annotated[Path, typer.Option(help="folder with scenes/")],
    world: Annotated[Path, typer.Option(help="folder of a rendered world: its objects, and its scenes")],
    output: Annotated[Path, typer.Option(help="the ONNX file to write")],
    steps: int = 7000,
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
    scenes, (of_world, objects) = load_scenes(data / "scenes"), load_world(world)
    split = len(scenes.images) * 9 // 10
    training = Scenes(scenes.images[:split], scenes.masks[:split])
    held_out = Scenes(scenes.images[split:], scenes.masks[split:])
    pool = Pool(join_scenes(training, of_world), objects, build_backgrounds(seed))
    sizes = {"steps": steps, "batch_size": batch_size, "workers": workers}
    model = train(pool, **sizes, seed=seed, bfloat16=bfloat16, start=start, max_rate=max_rate)
    write_bytes_atomic(output, export_onnx(model))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {output.stat().st_size / 1e6:.2f} MB")
    print(f"mean IoU on {len(held_out.images)} held-out scenes: {compute_mean_iou(model, held_out):.4f}")


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)


if __name__ == "__main__":
    typer.run(main)
