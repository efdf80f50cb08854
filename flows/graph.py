"""The pipeline as `dvc.yaml` tells it: stages, their order, and what their `meta` says to the runner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from imprint.core.errors import InputError
from imprint.core.params import Section, parse_section


class StageHints(Section):
    """A stage's `meta` block in `dvc.yaml`: what Prefect needs to know and DVC ignores."""

    retries: Annotated[int, Field(ge=0, le=10)] = 0  # of transient failures
    retry_delay_s: Annotated[float, Field(ge=0.0)] = 10.0
    timeout_s: Annotated[float, Field(gt=0.0)] | None = None
    gpu: bool = False  # such stages run one at a time
    fanout: Literal["clips"] | None = None  # the command takes `--chunk i/n`


@dataclass(frozen=True)
class StageNode:
    """`address` is what `dvc repro` calls it (`demo/dvc.yaml:demo_clips`), `name` its last part, which is unique."""

    name: str
    address: str
    command: str
    working_dir: Path
    upstream: tuple[str, ...]
    hints: StageHints
    has_remote: bool = False  # whether DVC has a default remote, where the outputs may be


def read_graph(root: Path) -> dict[str, StageNode]:
    """All stages of the project by name, each after its upstream stages. Data sets (`.dvc` files) are none."""
    import networkx
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(root)) as repo:
        whole = repo.index.graph  # edges point from a stage to what it depends on
        graph = whole.subgraph(stage for stage in whole if isinstance(stage, PipelineStage))
        order = list(networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing))
        nodes = [_build_node(stage, sorted(dep.name for dep in graph.successors(stage)), root) for stage in order]
        has_remote = bool(repo.config["core"].get("remote"))
    return {node.name: replace(node, has_remote=has_remote) for node in nodes}


def select_upstream(graph: dict[str, StageNode], names: Iterable[str]) -> dict[str, StageNode]:
    """The named stages and all that they need, in the graph's order."""
    wanted = list(names)
    chosen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in graph:
            raise InputError(f"stage {name} is unknown; dvc.yaml has {', '.join(graph)}")
        if name not in chosen:
            chosen.add(name)
            wanted.extend(graph[name].upstream)
    return {name: node for name, node in graph.items() if name in chosen}


def _build_node(stage, upstream: list[str], root: Path) -> StageNode:
    path = Path(stage.path).resolve().relative_to(root.resolve()).as_posix()
    address = stage.name if path == "dvc.yaml" else f"{path}:{stage.name}"
    hints = parse_section(StageHints, stage.meta or {}, f"{path}: {stage.name}.meta")
    command = " && ".join(stage.cmd) if isinstance(stage.cmd, list) else stage.cmd
    return StageNode(stage.name, address, command, Path(stage.wdir), tuple(upstream), hints)
