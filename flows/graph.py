"""The pipeline as `dvc.yaml` tells it: stages, their order, and what their `meta` says to the runner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flows.processes import find_site_cache
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


def find_unchanged(root: Path, stages: Mapping[str, StageNode]) -> set[str]:
    """Those of `stages` (in the graph's order) that DVC would skip, and whose inputs no other of them can change when
    all are run. Asked in one go: a `dvc` process per stage takes longer to start than to answer."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    settings = {"core": {"site_cache_dir": str(find_site_cache(root))}}  # the processes' own: files are hashed once
    try:
        with Repo(str(root), config=settings) as repo, repo.lock:
            own = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage) and stage.name in stages]
            changed = {stage.name for stage in own if stage.changed()}
    except (DvcException, OSError):  # such as a stage that somebody runs just now: the stage's own `dvc repro` tells it
        return set()
    unchanged: set[str] = set()
    for name, node in stages.items():
        if name not in changed and all(parent in unchanged for parent in node.upstream if parent in stages):
            unchanged.add(name)
    return unchanged


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
