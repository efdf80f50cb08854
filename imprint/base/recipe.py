"""`make base`: from the world's shards to `checkpoints/base`. Needs neither DVC nor a server."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from imprint.base.export import ROUNDS, export_base
from imprint.core.errors import InputError
from imprint.core.files import compute_digest, compute_path_digest, write_json_atomic
from imprint.core.keys import list_settings
from imprint.core.outside import load_json
from imprint.core.params import Params
from imprint.core.records import PairRecord, load_records
from imprint.evaluation.world import WorldSettings, run_evaluate_world
from imprint.models import load_card
from imprint.training.compositor_stage import OUT as COMPOSITOR
from imprint.training.compositor_stage import run_train_compositor
from imprint.training.freeze_stage import run_freeze_encoder
from imprint.training.pretrain_stage import FRESH, SHARDS, run_pretrain_encoder

STAGES: dict[str, Callable[[Params, Path], None]] = {
    "pretrain_encoder": run_pretrain_encoder,
    "freeze_encoder": run_freeze_encoder,
    "train_compositor": run_train_compositor,
}
REPORT = Path("reports/world")


def train_base(params: Params, shards: Path, *, work: Path, out: Path, command: str) -> None:
    """Run both stages in the folder `work`, measure on the held-out objects, and write the checkpoint to `out`.

    Finished stages are not run again for the same parameters, shards and model to start from; an interrupted one
    resumes. `command` goes into the model card.
    """
    if not (shards / "pairs.parquet").is_file():
        raise InputError(f"{shards} holds no shards (no pairs.parquet); see demo/README.md for how to render the world")
    for name in ("pretrain_encoder", "train_compositor"):
        if getattr(params, name).processes != 1 or "LOCAL_RANK" in os.environ:
            raise InputError(f"{name}.processes: train-base runs in one process; set it to 1, and start it plainly")
    inputs = {SHARDS: shards}
    init = Path(params.pretrain_encoder.init)
    if init != Path(FRESH):
        if not (init / "imprint.json").is_file():
            raise InputError(f"pretrain_encoder.init: {init} holds no model; name a checkpoint's folder or {FRESH}")
        inputs[init] = init
    for name, source in inputs.items():
        _place_link(source, work / name)
    digest = compute_digest(json.dumps([compute_path_digest(path) for path in inputs.values()]))
    for name, run in STAGES.items():
        digest = compute_digest(json.dumps([digest, name, list_settings(getattr(params, name))]))
        record = work / "finished" / f"{name}.json"
        if record.is_file() and load_json(record)["digest"] == digest:
            continue
        started_s = time.monotonic()
        run(params, work)
        write_json_atomic(record, {"digest": digest, "minutes": round((time.monotonic() - started_s) / 60, 1)})
    threads = params.train_compositor.threads
    metrics = run_evaluate_world(
        work / COMPOSITOR, shards, out=work / REPORT, settings=WorldSettings(), threads=threads
    )
    minutes = {name: load_json(work / "finished" / f"{name}.json")["minutes"] for name in STAGES}
    earlier = [] if init == Path(FRESH) else load_card(init).get(ROUNDS, [])
    rounds = [*earlier, collect_facts(params, minutes, command) | {"Objects": describe_objects(shards)}]
    sheets = [work / REPORT / name for name in ("contact_sheet.png", "objects_sheet.png")]
    export_base(work / COMPOSITOR, out, rounds=rounds, metrics=metrics, sheets=sheets)


def collect_facts(params: Params, minutes: dict[str, float], command: str) -> dict[str, str]:
    """What the model card says of how the model was made."""
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    facts = {"Command": f"`{command}`", "Machine": f"{machine} ({platform.machine()}), torch {torch.__version__}"}
    for name, title in (("pretrain_encoder", "Stage 1"), ("train_compositor", "Stage 2")):
        section = getattr(params, name)
        size = f", the first {section.half_size_steps:,} at half the size" if section.half_size_steps else ""
        precision = "bfloat16" if torch.cuda.is_available() else section.cpu_precision
        facts[title] = (
            f"{section.max_steps:,} steps of {section.batch_size} samples{size}; {precision}, seed {section.seed}; "
            f"{minutes[name]} minutes (of the last, uninterrupted part)"
        )
    return facts


def describe_objects(shards: Path) -> str:
    """How many objects of the shards were trained on, and the first and last of them: the world's names are seeds."""
    pairs = load_records(shards / "pairs.parquet", PairRecord)
    names = sorted({pair.clip_id for pair in pairs if pair.split == "train"})
    return f"{len(names):,} ({names[0]} to {names[-1]})"


def _place_link(source: Path, target: Path) -> None:
    """The stages read the shards, and the model to start from, in their own folder: links to what was named."""
    if target == source:  # an absolute path
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        raise InputError(f"{target} is in the way; name another --work folder")
    target.symlink_to(source.resolve(), target_is_directory=True)
