"""A compositor on the held-out objects of a rendered world: is it the same object, and how near is the composite?

No stage of the pipeline. In such shards every object is a clip of its own, seen alone (`multiview` pairs) and in scenes
(`video` pairs, from a view alone to a scene); those of split `test` were never trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_fill_holes

from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_path_digest, write_json_atomic
from imprint.core.masks import MASK_LEVELS, largest_component
from imprint.core.pixels import from_model_range, put_on_black, resize_mask, save_image
from imprint.core.progress import show_progress
from imprint.core.records import PairRecord, Split, build_id
from imprint.data import (
    DrawRules,
    IdentityBatch,
    ShardReader,
    build_fixed_batch,
    build_identity_sample,
    check_sizes,
    move_batch,
    select_rows,
    swap_objects,
)
from imprint.diffusion import build_generator, sample_object
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.composites import Making
from imprint.evaluation.goals import describe_world, format_all
from imprint.evaluation.held_out import choose_partners
from imprint.evaluation.identity import FEATURE, compute_descriptor, find_nearest
from imprint.evaluation.measures import METRICS_VERSION, compute_psnr_db
from imprint.evaluation.measuring import Shown
from imprint.evaluation.pictures import mark_hole
from imprint.evaluation.protocol import hash_settings
from imprint.evaluation.summary import Groups
from imprint.evaluation.world_composites import (
    LARGE_PX,
    MAX_MARGIN_SHARE,
    SHADOW_SHARE,
    choose_scene_pairs,
    group_by_object,
    measure_composites,
    time_composite,
)
from imprint.evaluation.world_views import LEVEL, format_view_counts, measure_view_counts
from imprint.inference.composer import Compositor
from imprint.models import ImprintModel, load_model

NAME = f"imprint-world-{METRICS_VERSION}"
NUM_SHOWN_PAIRS, NUM_SHOWN_OBJECTS = 16, 32
BATCH_SIZE, BOOTSTRAP_SAMPLES = 8, 2000
BRIGHT_LEVELS = 24  # of 255: what is brighter in any channel belongs to a sampled object
OBJECT_TILES = ("reference", "sample", "true target")
CASE_TILES = ("reference", "hole", "ours", "alpha paste", "truth")
_GAP_PX, _LABEL_PX, _HEADER_PX = 4, 92, 26

Cutout = tuple[np.ndarray, np.ndarray]  # RGB uint8 [h, w, 3], and the object's bool mask or uint8 opacity [h, w]
Row = tuple[Sequence[np.ndarray], tuple[str, str]]  # the tiles of one row of a sheet, and the two lines of its label


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """steps, guidance, draws, strength: see `imprint.models.Sampling`; max_objects: so many are drawn by the seed, None
    is all; pairs_per_stratum: of each stratum of view change so many pairs are composited at most; from_noise: so many
    of these also from noise alone; split: `val` is for choosing, as a preset's strength, `test` for telling."""

    steps: int = 3
    guidance: float = 1.5
    draws: int = 8
    strength: float | None = None
    pairs_per_stratum: int = 40
    from_noise: int = 4
    split: Split = "test"
    seed: int = 0
    max_objects: int | None = None

    def describe_making(self) -> Making:
        """How composites are made."""
        return Making(
            steps=self.steps,
            guidance=self.guidance,
            draws=self.draws,
            strength=self.strength,
            from_noise_cases=self.from_noise,
            batch_size=BATCH_SIZE,
        )


def run_evaluate_world(
    model_dir: Path, shards: Path, *, out: Path, settings: WorldSettings, threads: int = 1
) -> dict[str, Any]:
    """Write `world.json`, `contact_sheet.png` and `objects_sheet.png` to `out`, print a table, return the numbers.

    The same model, shards and settings give the same bytes. `InputError` for what the user can mend.
    """
    wanted = 2 if settings.max_objects is None else settings.max_objects
    if min(settings.steps, settings.guidance, settings.draws, settings.pairs_per_stratum, threads) < 1 or wanted < 2:
        raise InputError("--steps, --guidance, --draws, --pairs and --threads must be at least 1, --objects at least 2")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    reader = ShardReader(shards)
    object_pairs = choose_object_pairs(reader.pairs, settings)
    objects, count = [pair.clip_id for pair in object_pairs], settings.pairs_per_stratum
    chosen = choose_scene_pairs(reader.pairs, objects, per_stratum=count, seed=settings.seed, split=settings.split)
    scene_pairs = [pair for found in chosen.values() for pair in found]
    if len(object_pairs) < 2 or not scene_pairs:
        found = f"{len(object_pairs)} objects with multiview pairs and {len(scene_pairs)} video pairs of them"
        raise InputError(
            f"{shards} has {found} in split {settings.split}, 2 and 1 are needed; pack held-out objects and scenes"
        )
    model = load_model(model_dir)
    sizes = {"size_px": model.preset.size_px, "reference_px": model.preset.canvas_px}
    for pair in (object_pairs[0], scene_pairs[0]):
        check_sizes(reader, pair, preset=model.preset.name, **sizes)
    torch.set_num_threads(threads)
    identity, objects_sheet = measure_identity(model, reader, pairs=object_pairs, settings=settings)
    groups = Groups(
        view_changes=list(chosen), levels=MASK_LEVELS, bootstrap_samples=BOOTSTRAP_SAMPLES, seed=settings.seed
    )
    making = settings.describe_making()
    composites, shown = measure_composites(Compositor(model), reader, chosen, making=making, groups=groups)
    results = {
        "protocol": _build_protocol(reader, [*object_pairs, *scene_pairs], settings),
        "model": compute_path_digest(model_dir)[:12],
        "identity": identity,
        "composites": composites,
        "views": measure_view_counts(Compositor(model), reader, chosen, making=making, groups=groups),
    }
    save_image(out / "objects_sheet.png", objects_sheet)
    save_image(out / "contact_sheet.png", build_sheet(list_rows(shown), CASE_TILES))
    write_json_atomic(out / "world.json", results)
    print(format_table(results))
    seconds = time_composite(Compositor(model), shown.trials[0], making)
    print(f"one composite, {LARGE_PX} px, after loading: {seconds:.2f} s with {threads} threads", file=sys.stderr)
    return results


def choose_object_pairs(pairs: Sequence[PairRecord], settings: WorldSettings) -> list[PairRecord]:
    """One `multiview` pair per object, sorted by object: which one depends on the seed and the object alone."""
    chosen = [group[0] for group in group_by_object(pairs, "multiview", settings.seed, settings.split).values()]
    drawn = sorted(chosen, key=lambda pair: build_id(settings.seed, pair.clip_id))[: settings.max_objects]
    return sorted(drawn, key=lambda pair: pair.clip_id)


def measure_identity(
    model: ImprintModel, reader: ShardReader, *, pairs: Sequence[PairRecord], settings: WorldSettings
) -> tuple[dict[str, Any], np.ndarray]:
    """The numbers of sampling each object on black from its reference, and the sheet of the first NUM_SHOWN_OBJECTS.

    The gallery are all objects' true target views; the ceiling asks with the true reference views. The stranger is the
    next object: the same noise, that object's reference.
    """
    rules = DrawRules(mixture={"multiview": 1.0}, detail=model.preset.detail_crop)  # no augmentation
    batch = build_fixed_batch(reader, pairs, rules=rules, build_sample=build_identity_sample, seed=settings.seed)
    samples = sample_objects(model, batch, pairs=pairs, settings=settings)
    strangers = sample_objects(model, swap_objects(batch, choose_partners(pairs)), pairs=pairs, settings=settings)
    views = [[view.object_rgba for view in reader.read_pair(pair)] for pair in pairs]
    references, gallery = ([(rgba[side][..., :3], rgba[side][..., 3]) for rgba in views] for side in (0, 1))
    hits = find_hits([(sample, find_object(sample)) for sample in samples], gallery)
    truths = from_model_range(batch.target.numpy())
    regions = [resize_mask(opacity > 127, truths.shape[1:3]) for _, opacity in gallery]
    right, stranger = (np.array(list(map(compute_psnr_db, made, truths, regions))) for made in (samples, strangers))
    values = {
        "top1": hits,
        "ceiling_top1": find_hits(references, gallery),
        "right_psnr_db": right,
        "stranger_psnr_db": stranger,
        "gain_psnr_db": right - stranger,
    }
    objects = [pair.clip_id for pair in pairs]
    numbers = {name: _summarise(array, objects, settings.seed) for name, array in values.items()}
    rows: list[Row] = [
        ((put_on_black(reference), samples[n], truths[n]), (objects[n], "found" if hits[n] else "not found"))
        for n, (reference, _) in enumerate(views[:NUM_SHOWN_OBJECTS])
    ]
    counts = {"num_objects": len(pairs), "chance_top1": round(1 / len(pairs), 4)}
    return counts | numbers, build_sheet(rows, OBJECT_TILES)


@torch.inference_mode()
def sample_objects(
    model: ImprintModel, batch: IdentityBatch, *, pairs: Sequence[PairRecord], settings: WorldSettings
) -> np.ndarray:
    """uint8 [n, s, s, 3] on black. The noise of sample i is a function of the seed and of pair i alone."""
    samples = []
    with show_progress("evaluate-world: objects", len(pairs)) as bar:
        for start in range(0, len(pairs), BATCH_SIZE):
            rows = range(start, min(start + BATCH_SIZE, len(pairs)))
            shown = move_batch(select_rows(batch, rows), model.device)
            tokens, _ = model.encode_pictures(shown.reference, shown.more, shown.present)  # one view: all tokens count
            generators = [build_generator(settings.seed, "world", pairs[row].pair_id) for row in rows]
            options = {"steps": settings.steps, "guidance": settings.guidance, "draws": settings.draws}
            samples.append(sample_object(model, tokens, **options, generator=generators).float().cpu())
            bar.advance(len(generators))
    return from_model_range(torch.cat(samples).numpy())


def find_object(sample: np.ndarray) -> np.ndarray:
    """[h, w] bool: where a sampled RGB uint8 picture shows its object, as no mask is sampled with it.

    A channel above BRIGHT_LEVELS, largest component, holes (dark prints) filled. All of the picture if it is black.
    """
    found = np.asarray(binary_fill_holes(largest_component(sample.max(axis=-1) > BRIGHT_LEVELS)))
    return found if found.any() else np.ones_like(found)


def find_hits(queries: Sequence[Cutout], gallery: Sequence[Cutout]) -> np.ndarray:
    """[n] float: 1 where query i looks most like gallery picture i, else 0."""
    asked, known = ([compute_descriptor(image, mask) for image, mask in side] for side in (queries, gallery))
    return (find_nearest(asked, known) == np.arange(len(known))).astype(np.float64)


def list_rows(shown: Shown) -> list[Row]:
    """Rows of the sheet: the first NUM_SHOWN_PAIRS pairs of each stratum, the mask levels in turn."""
    rows: list[Row] = []
    for number, trial in enumerate(shown.trials):
        if trial.place >= NUM_SHOWN_PAIRS or trial.level != MASK_LEVELS[trial.place % len(MASK_LEVELS)]:
            continue
        ours, paste = (shown.composites[method][number] for method in ("ours", "paste"))
        assert ours is not None
        assert paste is not None
        marked = mark_hole(trial.case.plate, trial.hole)
        tiles = (put_on_black(trial.reference), marked, ours.picture, paste.picture, trial.case.truth)
        rows.append((tiles, (trial.case.name, f"{trial.level}, {trial.view_change}")))
    return rows


def build_sheet(rows: Sequence[Row], titles: Sequence[str]) -> np.ndarray:
    """RGB uint8: all rows in order, two side by side, every tile in its own size under its title."""
    height, width = (max(tile.shape[axis] for tiles, _ in rows for tile in tiles) + _GAP_PX for axis in (0, 1))
    half_px = _LABEL_PX + len(titles) * width
    sheet = Image.new("RGB", (2 * half_px, _HEADER_PX + -(-len(rows) // 2) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, title in enumerate([*titles, *titles]):
        column, place = divmod(number, len(titles))
        centre_px = column * half_px + _LABEL_PX + (place + 0.5) * width
        draw.text((centre_px, _HEADER_PX / 2), title, fill="black", font=font, anchor="mm")
    for number, (tiles, lines) in enumerate(rows):
        x0, y0 = number % 2 * half_px, _HEADER_PX + number // 2 * height
        draw.text((x0 + 8, y0 + height / 2), "\n".join(lines), fill="black", font=font, anchor="lm")
        for place, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (x0 + _LABEL_PX + place * width, y0))
    return np.asarray(sheet)


def format_table(results: dict[str, Any]) -> str:
    """The numbers as lines of text: mean and 95 % interval over objects; composites and goals as tables in Markdown."""
    identity, composites, protocol = results["identity"], results["composites"], results["protocol"]
    lines = [f"protocol {protocol['name']}/{protocol['hash']}, model {results['model']}"]
    lines.append(f"{identity['num_objects']} objects sampled on black, chance {identity['chance_top1']:.3f}")
    numbers = {name: cell for name, cell in identity.items() if isinstance(cell, dict)}
    lines += [f"  {n:<20}{c['mean']:8.3f}   {c['low']:.3f} .. {c['high']:.3f}" for n, c in numbers.items()]
    lines.append(f"\n{composites['num_composites']} composites of {composites['num_objects']} objects")
    if results["views"]:
        title = f"Several views of the object, of which the model takes the one that fits best (mask level {LEVEL}):"
        lines += ["", title, "", format_view_counts(results["views"])]
    return "\n".join([*lines, "", format_all(describe_world(results))])


def _summarise(values: np.ndarray, objects: Sequence[str], seed: int) -> dict[str, float]:
    """Mean and 95 % interval, resampled by object."""
    low, high = compute_interval(values, objects, samples=BOOTSTRAP_SAMPLES, seed=seed)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def _build_protocol(reader: ShardReader, pairs: Sequence[PairRecord], settings: WorldSettings) -> dict[str, Any]:
    """Name, hash and settings; the hash covers which pairs were chosen, and their pictures."""
    views = [view for pair in pairs for view in reader.read_pair(pair)]
    parts = [part for view in views for part in (view.object_rgba, view.scene, view.mask, view.plate)]
    pictures = b"".join(part.tobytes() for part in parts if part is not None)
    constants = {"bright_levels": BRIGHT_LEVELS, "max_margin_share": MAX_MARGIN_SHARE, "shadow_share": SHADOW_SHARE}
    constants["bootstrap_samples"] = BOOTSTRAP_SAMPLES
    shown = {"name": NAME, "feature": FEATURE, "levels": list(MASK_LEVELS), **constants, **asdict(settings)}
    covered = {"pairs": [pair.pair_id for pair in pairs], "pictures": compute_digest(pictures)}
    return shown | {"hash": hash_settings(shown | covered)}
