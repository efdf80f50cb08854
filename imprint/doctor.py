"""`imprint doctor`: what of this machine is ready, and pretrained weights at a commit that the params then name."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from imprint.core.errors import InputError
from imprint.core.files import write_bytes_atomic
from imprint.core.params import Params, load_params
from imprint.core.sources import (
    REVISION_KEYS,
    Source,
    fetch_source,
    find_cached,
    find_commit,
    is_folder,
    list_weights,
    name_sam2,
)

PARAMS = Path("params.yaml")
_TIMEOUT_S = 5.0
_GB = 1e9

Row = tuple[str, str, str]  # what, how it stands, what to do


def run_doctor(overlay: Path | None, *, download: bool, root: Path = Path(".")) -> None:
    """Print the table. With `download`, fetch the weights that the params name first, and write the commit of a hub id
    that has none into the params, once its files are here. `InputError` for what cannot be had."""
    sources = list_sources(load_params(root / PARAMS, overlay and root / overlay))
    if download:
        files = [path for path in (overlay, PARAMS) if path is not None]
        for source in sources:
            download_source(source, [root / path for path in files], root)
        sources = list_sources(load_params(root / PARAMS, overlay and root / overlay))
    for what, found, remedy in [*list_machine_rows(root), *(describe_source(source, root) for source in sources)]:
        print(f"{what:<18} {found}" + (f"; {remedy}" if remedy else ""))


def list_sources(params: Params) -> list[Source]:
    """The weights that the params name; SAM 2's only where it is the backend."""
    section = params.segment_objects
    followers = [name_sam2(section.sam2)] if section.backend == "sam2" else []
    return [*list_weights(params.pretrain_encoder.weights).values(), *followers]


def list_machine_rows(root: Path) -> Iterator[Row]:
    """Python, torch and its GPU, memory, disk, optional packages, and whether the hub answers."""
    import torch

    yield "python", sys.version.split()[0], ""
    yield "torch", torch.__version__, ""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        kind = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield "GPU", f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / _GB:.0f} GB, {kind}", ""
    else:
        yield "GPU", "none that torch sees", "presets tiny and base run on the CPU; see README, GPU"
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "memory", f"{memory_bytes / _GB:.0f} GB, {os.cpu_count()} CPU cores", ""
    yield "disk", f"{shutil.disk_usage(root).free / _GB:.0f} GB free", ""
    has_8bit = importlib.util.find_spec("bitsandbytes") is not None
    yield (
        "8-bit AdamW",
        "ready" if has_8bit else "no bitsandbytes",
        "" if has_8bit else "only for optimizer: adamw-8bit",
    )
    reason = try_hub()
    yield "hub", reason or "answers", "name folders in pretrain_encoder.weights" if reason else ""


def try_hub() -> str:
    """Empty if the hub answers, else why not, in a few words."""
    import httpx2
    from huggingface_hub import constants

    try:
        httpx2.head(constants.ENDPOINT, timeout=_TIMEOUT_S, follow_redirects=True)
    except httpx2.HTTPError as error:
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return ""


def describe_source(source: Source, root: Path) -> Row:
    """How one source of weights stands."""
    what = f"weights: {source.kind}"
    try:
        if is_folder(source, root):
            return what, f"folder {source.name}", ""
    except InputError as error:
        return what, f"{source.name} is missing", str(error)
    if find_cached(source, root) is not None:
        return what, f"{source.name} at {source.revision[:12]} is here", ""
    user = "segment_objects.backend sam2" if source.kind == "sam2" else "the presets sd15*"
    return what, f"{source.name} is not here", f"`imprint doctor --download`, for {user}"


def download_source(source: Source, files: list[Path], root: Path) -> None:
    """Fetch a source. The commit of a hub id without one is looked up, and written once the files are here."""
    if is_folder(source, root):
        return
    revision = source.revision or find_commit(source)
    fetch_source(Source(source.kind, source.name, revision), root)
    if not source.revision:
        keys = REVISION_KEYS[source.kind]
        path = write_value(files, keys, revision)
        print(f"{path}: {'.'.join(keys)}: {revision}")


def write_value(files: list[Path], keys: tuple[str, ...], value: str) -> Path:
    """Replace one value in the first of the YAML files that has it, and nothing else of the file; return the file."""
    for path in files:
        text = path.read_text()
        node = _find_node(yaml.compose(text), keys)
        if node is not None:
            changed = f'{text[: node.start_mark.index]}"{value}"{text[node.end_mark.index :]}'
            write_bytes_atomic(path, changed.encode())
            return path
    raise InputError(f"{files[-1]}: {'.'.join(keys)} is missing; add it")


def _find_node(node: yaml.Node | None, keys: tuple[str, ...]) -> yaml.Node | None:
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None)
    return node
