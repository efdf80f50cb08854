"""`imprint verify`: weights, a composite, both stages and a resume on this machine, and the rows of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from imprint.core.errors import InputError
from imprint.core.keys import PACKAGES_ROOT
from imprint.core.sources import list_weights
from imprint.doctor import describe_source, list_machine_rows
from imprint.estimate.counting import build_meta_model
from imprint.estimate.state import count_state
from imprint.tracking.provenance import read_git_tags
from imprint.training.tasks import IdentityTask
from imprint.verify.project import STEPS, Project, build_project, replace_sections, write_params
from imprint.verify.records import Action, Row, format_row, save_rows
from imprint.verify.runs import Seen, load_and_composite, read_seen, run_interrupted, run_stage

_GIB = 2**30


def run_verify(
    preset: str,
    *,
    overlay: Path | None,
    shards: Path | None,
    random_weights: bool,
    processes: int,
    root: Path = Path("."),
) -> list[Row]:
    """Do it all, say each line as it is known, write the rows. `InputError` at the first thing that fails."""
    project = build_project(preset, overlay=overlay, shards=shards, random_weights=random_weights, root=root)
    say_environment(project, root)
    check_disk(project)
    rows: list[Row] = []
    hardware, commit = describe_hardware(), describe_commit()
    day = datetime.now(UTC).date().isoformat()
    try:
        for action, figure in iterate_actions(project, processes):
            fields = {"preset": preset, "weights": project.weights, "hardware": hardware, "date": day, "commit": commit}
            rows.append(Row(action=action, figure=figure, **fields))
            print(f"{action:<13} {figure}", flush=True)
    finally:
        if rows:  # what was seen is kept, though what came next failed
            print("\n" + "\n".join(map(format_row, rows)))
            print("written to " + ", ".join(map(str, save_rows(rows, project.root, root))))
    return rows


def say_environment(project: Project, root: Path) -> None:
    """The doctor's table, and what is going to be used."""
    for what, found, remedy in list_machine_rows(root):
        print(f"{what:<13} {found}" + (f"; {remedy}" if remedy else ""))
    if project.weights == "published":
        for source in list_weights(project.params.pretrain_encoder.weights).values():
            what, found, remedy = describe_source(source, project.root)
            print(f"{what:<13} {found}" + (f"; {remedy}" if remedy else ""))
    print(f"{'weights':<13} {project.weights}")
    print(f"{'pairs':<13} {project.pairs}", flush=True)


def iterate_actions(project: Project, processes: int) -> Iterator[tuple[Action, str]]:
    """Each action, done, with its figure."""
    loaded, pictured = load_and_composite(project)
    yield "load", f"{loaded.seconds:.1f} s, {loaded.memory}"
    yield "composite", f"sampled as the preset says, with loading {pictured.seconds:.1f} s, {pictured.memory}"
    batch_size = project.params.pretrain_encoder.batch_size
    seen, step = run_interrupted(project)
    yield "stage 1", describe_training(seen, batch_size)
    yield "resume", f"stopped and saved at step {step}, went on to {STEPS}"
    run_stage(project, "freeze_encoder", log="freeze")
    forget_checkpoints(project, "pretrain_encoder")
    _, seconds, rss_gib = run_stage(project, "train_compositor", log="stage2")
    seen = read_seen(project, "train_compositor", seconds=seconds, rss_gib=rss_gib)
    yield "stage 2", describe_training(seen, project.params.train_compositor.batch_size)
    forget_checkpoints(project, "train_compositor")
    if processes > 1:
        write_params(replace_sections(project.params, pretrain_encoder={"processes": processes}), project.root)
        _, seconds, rss_gib = run_stage(project, "pretrain_encoder", log="several-processes")
        seen = read_seen(project, "pretrain_encoder", seconds=seconds, rss_gib=rss_gib)
        yield "several GPUs", f"{processes} processes, {describe_training(seen, batch_size)}"


def describe_training(seen: Seen, batch_size: int) -> str:
    """A stage's figure."""
    return (
        f"{STEPS} steps of {batch_size}, {seen.images_per_s:.3g} images/s, {seen.memory}, {seen.seconds:.0f} s in all"
    )


def forget_checkpoints(project: Project, stage: str) -> None:
    """Give their room to the next stage."""
    for folder in project.root.glob(f"work/{stage}/*/checkpoints"):
        shutil.rmtree(folder)


def check_disk(project: Project) -> None:
    """`InputError` if the models and checkpoints of a stage would not fit."""
    section = project.params.pretrain_encoder
    model = build_meta_model(
        project.preset, IdentityTask(section), params=section, from_scratch=True, train_middle_block=True
    )
    state = count_state(model, section)
    # the start, two stages' models in three places, two checkpoints and one being written
    needed = 7 * state.export + 3 * state.compute_checkpoint_bytes(section.optimizer)
    free = shutil.disk_usage(project.root).free
    if free < needed:
        raise InputError(
            f"{project.root}: {needed / _GIB:.0f} GiB are needed and {free / _GIB:.0f} are free; make room, or link "
            "work/ to a larger disk"
        )


def describe_hardware() -> str:
    """The GPU, or the CPU's cores and memory."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / _GIB:.0f} GiB"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"CPU, {os.cpu_count()} cores, {memory_bytes / _GIB:.0f} GiB, shared with other work"


def describe_commit() -> str:
    """Of the code that ran; a + where files of it had been changed, `unknown` outside a repository."""
    tags = read_git_tags(PACKAGES_ROOT)
    if not tags:
        return "unknown"
    return tags["mlflow.source.git.commit"][:7] + ("+" if tags["git.dirty"] == "true" else "")
