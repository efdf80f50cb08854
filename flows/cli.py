"""The `imprint` command: the commands of `data_prep` and `imprint`, and those of the pipeline as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import data_prep.cli
import imprint.cli
from imprint.core.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# these say nothing without their noun: `imprint data validate`, `imprint data review`
data = typer.Typer(no_args_is_help=True, help="Look at a source of data before it is used, and at what was made of it.")
of_data = (data_prep.cli.validate, data_prep.cli.review)
for callback in of_data:
    data.command()(callback)
app.add_typer(data, name="data")
stages = [command for command in data_prep.cli.app.registered_commands if command.callback not in of_data]
app.registered_commands += [*stages, *imprint.cli.app.registered_commands]


@app.callback()
def pipeline() -> None:
    """From video clips to a registered compositor. Commands work on the project in the current folder."""


@app.command()
def demo(params: Annotated[Path | None, typer.Option(help="Overlay of params.yaml; runs in a copy.")] = None) -> None:
    """Run everything with DVC, register the models, and show the metrics and pictures."""
    from flows.demo import run_demo

    run_demo(params)


@app.command()
def run(
    flow: Annotated[
        str, typer.Argument(help="prepare-data, pretrain-encoder, train-compositor, evaluate or all.")
    ] = "all",
) -> None:
    """Run a flow with Prefect, here, against the server of PREFECT_API_URL."""
    from flows.commands import run_flow

    run_flow(flow)


@app.command()
def register() -> None:
    """Register models/encoder and models/compositor in MLflow, unless their content is registered already."""
    from flows.demo import register as register_here

    register_here(Path("."))


@app.command()
def models() -> None:
    """List the registered versions and their aliases."""
    from flows.commands import print_models

    print_models(Path("."))


@app.command()
def promote(name: str, version: str) -> None:
    """Make a version of a registered model its champion."""
    from flows.registry import promote as promote_version

    promote_version(name, version)


def main() -> None:
    """One line on standard error and exit code 2 for what the user can mend."""
    try:
        app()
    except InputError as error:
        print(f"imprint: {error}", file=sys.stderr)
        raise SystemExit(2) from None
