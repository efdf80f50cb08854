"""The `imprint` command: the commands of `data_prep` and `imprint`, and those of the pipeline as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import data_prep.cli
import imprint.cli
from imprint.core.outside import exit_in_one_line, reach_loopback_directly

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
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that works on the clips.")
    ] = None,
) -> None:
    """Run a flow with Prefect, here, against the server of PREFECT_API_URL or of `imprint up`."""
    from flows.commands import run_flow

    run_flow(flow, dask)


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="Of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Of the MLflow server.")] = 5000,
) -> None:
    """Start Prefect server, MLflow server and workers on loopback, with all deployments; say where they are."""
    from flows.commands import start_servers

    start_servers(Path("."), prefect_port=prefect_port, mlflow_port=mlflow_port)


@app.command()
def down() -> None:
    """End what `up` started in this folder, and nothing else."""
    from flows.servers import down as end_servers

    print("ended: " + (", ".join(end_servers(Path("."))) or "nothing was running"))


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
def gate(
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure a champion of another protocol again first (minutes).")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Promote the challenger if the gate says so.")] = False,
) -> None:
    """Compare challenger and champion by the rules of gate.yaml; write reports/gate."""
    from flows.commands import run_gate_here

    run_gate_here(Path("."), remeasure=remeasure, promote_it=promote)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="imprint-compositor; its encoder moves with it.")],
    version: Annotated[str, typer.Argument(help="A number of `imprint models`.")],
    reason: Annotated[str, typer.Option(help="Kept with the version.")],
) -> None:
    """Make a version the champion, whatever the gate says."""
    from flows.promotion import promote as promote_version

    promote_version(name, version, reason=reason)
    print(f"{name}: version {version} is champion")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="imprint-compositor; its encoder moves with it.")],
    reason: Annotated[str, typer.Option(help="Kept with the version; the gate will not promote it again.")],
) -> None:
    """Make the champion's predecessor champion again."""
    from flows.promotion import rollback as roll_back

    print(f"{name}: version {roll_back(name, reason=reason)} is champion again")


@app.command()
def evaluate_version(
    name: Annotated[str, typer.Argument(help="imprint-compositor.")],
    version: Annotated[str, typer.Argument(help="A number of `imprint models`.")],
) -> None:
    """Measure a registered version on the test cases as params.yaml says now; write reports/versions."""
    from flows.commands import evaluate_version_here

    evaluate_version_here(name, version, Path("."))


@app.command()
def status() -> None:
    """Champion, challenger, runs, schedule, data and disk use on one screen."""
    from flows.servers import find_environment
    from flows.status import print_status

    os.environ.update(find_environment(Path(".")))  # of `make up`, if it runs
    print_status(Path("."))


def main() -> None:
    """One line on standard error and exit code 2 for what the user can mend."""
    reach_loopback_directly()
    with exit_in_one_line("imprint"):
        app()
