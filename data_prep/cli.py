"""Commands of the data's way: `python -m data_prep <stage>`. Each loads `params.yaml` and runs one stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from imprint.core.outside import exit_in_one_line
from imprint.core.params import Params, load_params
from imprint.core.stage import run_command

app = typer.Typer(no_args_is_help=True, add_completion=False, help="From videos to training shards.")
Chunk = Annotated[str | None, typer.Option(help="Only the share i/n of the clips, e.g. 1/4; nothing is published.")]


@app.command()
def ingest() -> None:
    """List, probe and hash the videos of ingest.source."""
    from data_prep.ingest.stage import run_ingest

    _run("ingest", run_ingest)


@app.command()
def extract_frames(chunk: Chunk = None) -> None:
    """Take sharp, distinct frames from every clip."""
    from data_prep.frames.stage import run_extract_frames

    _run("extract_frames", lambda params: run_extract_frames(params, chunk=chunk))


@app.command()
def segment_objects(chunk: Chunk = None) -> None:
    """Find the objects in the frames and follow them over time."""
    from data_prep.masks.stage import run_segment_objects

    _run("segment_objects", lambda params: run_segment_objects(params, chunk=chunk))


@app.command()
def mine_pairs() -> None:
    """Choose training pairs and split them by clusters of near-duplicate clips."""
    from data_prep.pairs.stage import run_mine_pairs

    _run("mine_pairs", run_mine_pairs)


@app.command()
def pack_shards() -> None:
    """Pack the pairs' views into tar shards."""
    from data_prep.shards.stage import run_pack_shards

    _run("pack_shards", run_pack_shards)


@app.command()
def report_data() -> None:
    """Write the page on the data set, and its counts."""
    from data_prep.report.stage import run_report_data

    _run("report_data", run_report_data)


@app.command()
def validate(path: str) -> None:
    """Say in one page which layout PATH has, what is usable, what is wrong and how to mend it. Writes nothing."""
    from data_prep.validate import validate_source

    with exit_in_one_line("validate"):
        page, usable = validate_source(path, load_params())
    print(page, end="")
    raise typer.Exit(0 if usable else 2)


@app.command()
def review(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look at tracks and pairs on a local page, and keep or drop them by a key."""
    from data_prep.review.server import run_review

    with exit_in_one_line("review"):
        run_review(port, browser)


def _run(stage: str, body: Callable[[Params], None]) -> None:
    run_command(stage, lambda: body(load_params()))
