"""`python -m imprint`: the training and evaluation stages, and the composite. Heavy imports wait for their need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imprint.core.outside import exit_in_one_line

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def imprint() -> None:
    """Train, evaluate and use a compositor: put an object into a picture."""


@app.command()
def pretrain_encoder() -> None:
    """Stage 1: train the object encoder on views of one object; write models/pretrained."""
    from imprint.core.stage import run_command

    def body() -> None:
        from imprint.core.params import load_params
        from imprint.training.launch import run_in_processes
        from imprint.training.pretrain_stage import run_pretrain_encoder

        params = load_params()
        count = params.pretrain_encoder.processes
        run_in_processes(lambda: run_pretrain_encoder(params), command="pretrain-encoder", count=count)

    run_command("pretrain_encoder", body)


@app.command()
def freeze_encoder() -> None:
    """Write stage 1's backbone and adapter to models/encoder, checked and with their digests."""
    from imprint.core.stage import run_command

    def body() -> None:
        from imprint.core.params import load_params
        from imprint.training.freeze_stage import run_freeze_encoder

        run_freeze_encoder(load_params())

    run_command("freeze_encoder", body)


@app.command()
def train_compositor() -> None:
    """Stage 2: train the compositor on scenes with a hole; write models/compositor."""
    from imprint.core.stage import run_command

    def body() -> None:
        from imprint.core.params import load_params
        from imprint.training.compositor_stage import run_train_compositor
        from imprint.training.launch import run_in_processes

        params = load_params()
        count = params.train_compositor.processes
        run_in_processes(lambda: run_train_compositor(params), command="train-compositor", count=count)

    run_command("train_compositor", body)


@app.command()
def evaluate() -> None:
    """Measure models/compositor on the cases with ground truth; write the metrics file and the report."""
    from imprint.core.params import load_params
    from imprint.core.stage import run_command

    def body() -> None:
        from imprint.evaluation.stage import run_evaluate

        run_evaluate(load_params())

    run_command("evaluate", body)


@app.command()
def evaluate_world(
    model: Annotated[Path, typer.Option(help="A compositor's folder.")],
    shards: Annotated[Path, typer.Option(help="Shards of a rendered world; its split test holds new objects.")],
    out: Annotated[Path, typer.Option(help="The folder for world.json and the two sheets of pictures.")],
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 3,
    guidance: Annotated[float, typer.Option(help="1 is none; more follows the object more strictly.")] = 1.5,
    draws: Annotated[int, typer.Option(help="Draws of noise per step, whose mean is taken.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of views and of the noise.")] = 0,
    objects: Annotated[int | None, typer.Option(help="Draw so many of the objects; all if it is left out.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="1: from noise; 0: the flow's picture. The model's own.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Composite at most so many pairs of each stratum of view change.")] = 40,
    from_noise: Annotated[int, typer.Option(help="So many of these also from noise alone, as in the paper.")] = 4,
    validation: Annotated[bool, typer.Option(help="Objects of split val: to choose by, as the strength.")] = False,
) -> None:
    """Measure a compositor on the held-out objects of a rendered world: identity, composites, baselines, goals."""
    with exit_in_one_line("evaluate-world"):
        from imprint.evaluation.world import WorldSettings, run_evaluate_world

        settings = WorldSettings(
            steps=steps,
            guidance=guidance,
            draws=draws,
            strength=strength,
            seed=seed,
            max_objects=objects,
            pairs_per_stratum=pairs,
            from_noise=from_noise,
            split="val" if validation else "test",
        )
        run_evaluate_world(model, shards, out=out, settings=settings, threads=threads)


@app.command()
def evaluation_table(
    metrics: Annotated[Path, typer.Option(help="evaluation.json of `evaluate` or of a version, or world.json.")] = Path(
        "metrics/evaluation.json"
    ),
) -> None:
    """Print the numbers of an evaluation as tables in Markdown, by mask level and by view change, and the goals."""
    with exit_in_one_line("evaluation-table"):
        from imprint.evaluation.goals import print_markdown

        print_markdown(metrics)


@app.command()
def train_base(
    shards: Annotated[Path, typer.Option(help="The packed world (python -m demo.render world, then pack).")],
    params: Annotated[Path, typer.Option(help="What replaces keys of params.yaml.")] = Path("params/base.yaml"),
    work: Annotated[Path, typer.Option(help="Where the stages work; run again to resume.")] = Path("work/base"),
    out: Annotated[Path, typer.Option(help="The checkpoint's folder; replaced.")] = Path("checkpoints/base"),
) -> None:
    """Train the base model on a rendered world, measure it on held-out objects, and write checkpoints/base."""
    with exit_in_one_line("train-base"):
        from imprint.base.recipe import train_base as run_train_base
        from imprint.core.params import load_params

        command = f"python -m imprint train-base --params {params}"
        run_train_base(load_params(overlay=params), shards, work=work, out=out, command=command)


@app.command()
def composite(
    object_paths: Annotated[
        list[Path],
        typer.Option(
            "--object",
            help="The object, or a folder of views of it; without transparency it is segmented first. May be given "
            "again: of several views the one that fits best is taken.",
        ),
    ],
    background: Annotated[Path, typer.Option(help="The picture that it goes into, of any size.")],
    mask: Annotated[Path, typer.Option(help="As large as the background: white where the object goes.")],
    output: Annotated[Path, typer.Option(help="The PNG to write.")],
    mask_level: Annotated[
        str,
        typer.Option(help="How to read the mask: exact (its outline is the object's), soft, coarse or box (a place)."),
    ] = "box",
    model: Annotated[
        str, typer.Option(help="A model's folder, or a models:/ URI of the MLflow registry.")
    ] = "models/compositor",
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Left out, as the next two: the model's own.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="1 is none; more follows the object more strictly.")] = None,
    draws: Annotated[
        int | None,
        typer.Option(help="Draws of noise per step, whose mean is taken: more is smoother, 1 is a solver's path."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="1: from noise, as in the paper; 0: the object's own pixels; between: from the latter on."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="insert: what lies in the mask beside the object stays; replace: it is made anew. Left out: "
            "insert, where the model can."
        ),
    ] = None,
    shadow_reach: Annotated[
        float,
        typer.Option(help="How far the shadow may leave the mask, in its longer sides. 0: no pixel outside changes."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed gives another picture.")] = 0,
) -> None:
    """Put an object into a background where a mask is white."""
    from imprint.inference.command import composite_files

    settings = {"level": mask_level, "model": model, "seed": seed}
    settings |= {"steps": steps, "guidance": guidance, "draws": draws, "strength": strength}
    settings |= {"mode": mode, "shadow_reach": shadow_reach}
    with exit_in_one_line("composite"):
        composite_files(object_paths, background, mask_path=mask, output_path=output, **settings)


@app.command()
def send_metrics() -> None:
    """Send to MLflow what it could not be told while it was away; the next stage of the pipeline does it as well."""
    from imprint.core.errors import InputError
    from imprint.tracking import send_unsent

    with exit_in_one_line("send-metrics"):
        try:
            sent = send_unsent(Path.cwd())
        except Exception as error:
            raise InputError(f"MLflow cannot be reached: {' '.join(str(error).split())[:300]}") from None
    for work_dir, count in sent.items():
        print(f"{work_dir.relative_to(Path.cwd())}: {count} entries sent")


@app.command()
def migrate(
    params: Annotated[Path, typer.Argument(help="The parameter file.")] = Path("params.yaml"),
) -> None:
    """Bring a parameter file of an earlier version up to date: new keys, by which nothing changes."""
    with exit_in_one_line("migrate"):
        from imprint.core.migrate import migrate_params

        added = migrate_params(params)
    for key, value in added.items():
        print(f"{params}: {key}: {value}")
    print(f"{params}: {len(added)} keys added" if added else f"{params} misses nothing")


@app.command()
def doctor(
    params: Annotated[
        Path | None, typer.Option(help="What replaces keys of params.yaml, for example params/sd15.yaml.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the pretrained weights, and write their commits into the params.")
    ] = False,
) -> None:
    """Say what of this machine is ready: torch and GPU, memory, disk, the hub, the pretrained weights."""
    with exit_in_one_line("doctor"):
        from imprint.doctor import run_doctor

        run_doctor(params, download=download)


@app.command()
def estimate(
    params: Annotated[
        Path | None, typer.Option(help="What replaces keys of params.yaml, for example params/sd15.yaml.")
    ] = None,
    card: Annotated[str, typer.Option(help="rtx-3090, rtx-4090, a100-40, a100-80 or h100.")] = "rtx-4090",
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", help="Of another card, in GiB; with --tflops, in place of --card.")
    ] = None,
    tflops: Annotated[float | None, typer.Option(help="Its peak in bfloat16, without sparsity.")] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the peak that training reaches: a guess, 0 to 1.", min=0.01, max=1.0)
    ] = 0.3,
    bfloat16: Annotated[bool, typer.Option(help="As on a GPU; without it as on a CPU.")] = True,
    clip_hours: Annotated[float, typer.Option(help="Hours of video, for the disk.", min=0.0)] = 1.0,
) -> None:
    """Say what a run will take: GPU memory, hours, disk. Needs no weights and no GPU, and a minute or two."""
    with exit_in_one_line("estimate"):
        from imprint.estimate.command import run_estimate

        settings = {"utilisation": utilisation, "bfloat16": bfloat16, "clip_hours": clip_hours}
        run_estimate(params, card=card, memory_gb=memory_gb, tflops=tflops, **settings)


@app.command()
def verify(
    preset: Annotated[str, typer.Argument(help="tiny, base, small, sd15-tiny, sd15 or sd15-lora.")],
    params: Annotated[
        Path | None, typer.Option(help="What replaces keys of params.yaml; by default params/PRESET.yaml.")
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Shards of the preset's size; by default data/shards if they are, else a set made of the demo picture."
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Full structure and size, random weights: without the hub.")
    ] = False,
    processes: Annotated[int, typer.Option(help="Also run stage 1 in so many processes: one per GPU.", min=1)] = 1,
) -> None:
    """Try a preset here: load, composite, 20 steps of each stage, a stop and resume; add to docs/verified.md."""
    with exit_in_one_line("verify"):
        from imprint.verify.command import run_verify

        run_verify(preset, overlay=params, shards=shards, random_weights=random_weights, processes=processes)
