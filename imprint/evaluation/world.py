"""A compositor on the held-out objects of a rendered world: is it the same object, and how near is the composite?

No stage of the pipeline. In such shards every object is a clip of its own, seen alone (`multiview` pairs) and in scenes
(`video` pairs, from a view alone to a scene); those of split `test` were never trained on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_fill_holes

from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_path_digest, write_json_atomic
from imprint.core.masks import (
    MASK_LEVELS,
    MaskLevel,
    add_contact_margin,
    compute_mask_levels,
    compute_object_size_px,
    largest_component,
)
from imprint.core.pixels import from_model_range, put_on_black, resize_mask, save_image
from imprint.core.prepare import check_outside
from imprint.core.progress import show_progress
from imprint.core.records import PairKind, PairRecord, build_id
from imprint.data import (
    DrawRules,
    IdentityBatch,
    ShardReader,
    View,
    build_fixed_batch,
    build_identity_sample,
    check_sizes,
    move_batch,
    select_rows,
    swap_objects,
)
from imprint.diffusion import build_generator, sample_object
from imprint.evaluation.baselines import clone_object, paste_object
from imprint.evaluation.bootstrap import compute_interval
from imprint.evaluation.composites import METHODS
from imprint.evaluation.held_out import choose_partners
from imprint.evaluation.identity import FEATURE, compute_descriptor, find_nearest
from imprint.evaluation.measures import METRICS_VERSION, compute_psnr_db, compute_ssim_map
from imprint.evaluation.pictures import mark_hole
from imprint.evaluation.protocol import hash_settings
from imprint.inference.composer import Compositor
from imprint.inference.inputs import Request
from imprint.models import ImprintModel, load_model

NAME = f"imprint-world-{METRICS_VERSION}"
NUM_COMPOSITES, NUM_SHOWN_OBJECTS = 64, 32
BATCH_SIZE, BOOTSTRAP_SAMPLES = 8, 2000
BRIGHT_LEVELS = 24  # of 255: what is brighter in any channel belongs to a sampled object
MARGIN_SHARE = 0.08  # of the object's size, for its contact shadow
OBJECT_TILES = ("reference", "sample", "true target")
CASE_TILES = ("reference", "hole", "ours", "alpha paste", "truth")
_GAP_PX, _LABEL_PX, _HEADER_PX = 4, 92, 26

Cutout = tuple[np.ndarray, np.ndarray]  # RGB uint8 [h, w, 3], and the object's bool mask or uint8 opacity [h, w]
Row = tuple[Sequence[np.ndarray], tuple[str, str]]  # the tiles of one row of a sheet, and the two lines of its label


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """steps, guidance, draws: see `imprint.models.Sampling`; max_objects: so many are drawn by the seed, None: all."""

    steps: int = 3
    guidance: float = 1.5
    draws: int = 8
    seed: int = 0
    max_objects: int | None = None


def run_evaluate_world(
    model_dir: Path, shards: Path, *, out: Path, settings: WorldSettings, threads: int = 1
) -> dict[str, Any]:
    """Write `world.json`, `contact_sheet.png` and `objects_sheet.png` to `out`, print a table, return the numbers.

    The same model, shards and settings give the same bytes. `InputError` for what the user can mend.
    """
    wanted = 2 if settings.max_objects is None else settings.max_objects
    if min(settings.steps, settings.guidance, settings.draws, threads) < 1 or wanted < 2:
        raise InputError("--steps, --guidance, --draws and --threads must be at least 1, --objects at least 2")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    reader = ShardReader(shards)
    object_pairs = choose_object_pairs(reader.pairs, settings)
    scene_pairs = choose_scene_pairs(reader.pairs, [pair.clip_id for pair in object_pairs], seed=settings.seed)
    if len(object_pairs) < 2 or not scene_pairs:
        found = f"{len(object_pairs)} objects with multiview pairs and {len(scene_pairs)} video pairs of them"
        raise InputError(f"{shards} has {found} in split test, 2 and 1 are needed; pack held-out objects and scenes")
    model = load_model(model_dir)
    sizes = {"size_px": model.preset.size_px, "reference_px": model.preset.canvas_px}
    for pair in (object_pairs[0], scene_pairs[0]):
        check_sizes(reader, pair, preset=model.preset.name, **sizes)
    torch.set_num_threads(threads)
    identity, objects_sheet = measure_identity(model, reader, pairs=object_pairs, settings=settings)
    composites, contact_sheet = measure_composites(Compositor(model), reader, pairs=scene_pairs, settings=settings)
    results = {
        "protocol": _build_protocol(reader, [*object_pairs, *scene_pairs], settings),
        "model": compute_path_digest(model_dir)[:12],
        "identity": identity,
        "composites": composites,
    }
    save_image(out / "objects_sheet.png", objects_sheet)
    save_image(out / "contact_sheet.png", contact_sheet)
    write_json_atomic(out / "world.json", results)
    print(format_table(results))
    return results


def choose_object_pairs(pairs: Sequence[PairRecord], settings: WorldSettings) -> list[PairRecord]:
    """One test `multiview` pair per object, sorted by object: which one depends on the seed and the object alone."""
    chosen = [group[0] for group in _group_by_object(pairs, "multiview", settings.seed).values()]
    drawn = sorted(chosen, key=lambda pair: build_id(settings.seed, pair.clip_id))[: settings.max_objects]
    return sorted(drawn, key=lambda pair: pair.clip_id)


def choose_scene_pairs(pairs: Sequence[PairRecord], objects: Sequence[str], *, seed: int) -> list[PairRecord]:
    """At most NUM_COMPOSITES test `video` pairs of `objects` (clip ids) in random order; no object has its second one
    before all others have had their first."""
    groups = _group_by_object(pairs, "video", seed)
    ranked = [(rank, build_id(seed, clip), pair) for clip in objects for rank, pair in enumerate(groups.get(clip, []))]
    return [pair for _, _, pair in sorted(ranked, key=lambda item: item[:2])[:NUM_COMPOSITES]]


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


def measure_composites(
    compositor: Compositor, reader: ShardReader, *, pairs: Sequence[PairRecord], settings: WorldSettings
) -> tuple[dict[str, Any], np.ndarray]:
    """The numbers of all methods over the object's pixels, the mask levels in turn, and the sheet of all cases."""
    levels: list[MaskLevel] = [MASK_LEVELS[number % len(MASK_LEVELS)] for number in range(len(pairs))]
    views = [reader.read_pair(pair) for pair in pairs]
    requests = [build_request(*views[n], level=level, seed=settings.seed + n) for n, level in enumerate(levels)]
    values, rows = [], []
    for number, ours in enumerate(_make_ours(compositor, requests, settings)):
        request, (_, target) = requests[number], views[number]
        inputs = (request.object_rgba, request.background, request.hole)
        made = dict(zip(METHODS, (ours, paste_object(*inputs), clone_object(*inputs)), strict=True))
        values.append({})
        for method, image in made.items():
            check_outside(image, target.scene, request.hole)
            values[-1][f"{method} psnr_db"] = compute_psnr_db(image, target.scene, target.mask)
            values[-1][f"{method} ssim"] = float(compute_ssim_map(image, target.scene)[target.mask].mean())
        marked = mark_hole(request.background, request.hole)
        tiles = (put_on_black(request.object_rgba), marked, ours, made["paste"], target.scene)
        rows.append((tiles, (pairs[number].clip_id, levels[number])))
    objects = [pair.clip_id for pair in pairs]
    numbers: dict[str, Any] = {"num_composites": len(pairs), "num_objects": len(set(objects))}
    for part in ("all", *dict.fromkeys(levels)):
        places = [number for number, level in enumerate(levels) if part in ("all", level)]
        columns = {name: np.array([values[place][name] for place in places]) for name in values[0]}
        chosen = [objects[place] for place in places]
        numbers[part] = {name: _summarise(column, chosen, settings.seed) for name, column in columns.items()}
    return numbers, build_sheet(rows, CASE_TILES)


def build_request(reference: View, target: View, *, level: MaskLevel, seed: int) -> Request:
    """The reference into the target's scene. No plate was rendered: the hole is filled from its rim (Telea 2004), so
    that no method sees the true object, not even in the feather or at the seam."""
    hole = compute_mask_levels(target.mask)[level]
    grown = add_contact_margin(hole, compute_object_size_px(target.mask), MARGIN_SHARE)
    hole = hole if level == "exact" or grown.all() else grown  # something has to stay
    filled = cv2.inpaint(target.scene, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    plate = np.where(hole[..., None], filled, target.scene)
    return Request(object_rgba=reference.object_rgba, background=plate, hole=hole, level=level, seed=seed)


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
    """The numbers as lines of text: mean and 95 % interval over objects."""
    identity, composites, protocol = results["identity"], results["composites"], results["protocol"]
    counts = f"{identity['num_objects']} objects sampled on black, chance {identity['chance_top1']:.3f}"
    parts = {counts: identity}
    parts |= {f"composites, {part}": cells for part, cells in composites.items() if isinstance(cells, dict)}
    lines = [f"protocol {protocol['name']}/{protocol['hash']}, model {results['model']}"]
    for title, cells in parts.items():
        numbers = {name: cell for name, cell in cells.items() if isinstance(cell, dict)}
        lines += [
            title,
            *(f"  {n:<20}{c['mean']:8.3f}   {c['low']:.3f} .. {c['high']:.3f}" for n, c in numbers.items()),
        ]
    return "\n".join(lines)


def _make_ours(compositor: Compositor, requests: Sequence[Request], settings: WorldSettings) -> list[np.ndarray]:
    images = []
    sampling = {"steps": settings.steps, "guidance": settings.guidance, "draws": settings.draws}
    with show_progress("evaluate-world: composites", len(requests)) as bar:
        for start in range(0, len(requests), BATCH_SIZE):
            batch = requests[start : start + BATCH_SIZE]
            images += compositor.composite_batch(batch, **sampling)
            bar.advance(len(batch))
    return images


def _group_by_object(pairs: Sequence[PairRecord], kind: PairKind, seed: int) -> dict[str, list[PairRecord]]:
    """Clip id => its test pairs of the kind, in an order drawn by the seed."""
    groups: dict[str, list[PairRecord]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: build_id(seed, pair.pair_id)):
        if pair.kind == kind and pair.split == "test":
            groups[pair.clip_id].append(pair)
    return groups


def _summarise(values: np.ndarray, objects: Sequence[str], seed: int) -> dict[str, float]:
    """Mean and 95 % interval, resampled by object."""
    low, high = compute_interval(values, objects, samples=BOOTSTRAP_SAMPLES, seed=seed)
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def _build_protocol(reader: ShardReader, pairs: Sequence[PairRecord], settings: WorldSettings) -> dict[str, Any]:
    """Name, hash and settings; the hash covers which pairs were chosen, and their pictures."""
    views = [view for pair in pairs for view in reader.read_pair(pair)]
    pictures = b"".join(part.tobytes() for view in views for part in (view.object_rgba, view.scene, view.mask))
    constants = {"bright_levels": BRIGHT_LEVELS, "margin_share": MARGIN_SHARE, "bootstrap_samples": BOOTSTRAP_SAMPLES}
    shown = {"name": NAME, "feature": FEATURE, "levels": list(MASK_LEVELS), **constants, **asdict(settings)}
    covered = {"pairs": [pair.pair_id for pair in pairs], "pictures": compute_digest(pictures)}
    return shown | {"hash": hash_settings(shown | covered)}
