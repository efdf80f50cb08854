"""Where pretrained weights come from: a folder, or a repository of the Hugging Face hub at a commit. No pickles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imprint.core.errors import InputError
from imprint.core.params import Weights

Kind = Literal["base", "backbone"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
# what is fetched of a repository: one copy of the weights, no other precision, nothing pickled
_FILES = {
    "base": [
        f"{part}/{name}"
        for part in ("unet", "vae")
        for name in (
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model-*-of-*.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        )
    ]
    + ["scheduler/scheduler_config.json"],
    "backbone": ["config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"],
}


@dataclass(frozen=True)
class Source:
    """kind: `base` (U-Net, VAE and scheduler) or `backbone`; name: a folder or a hub id; revision: the hub's commit."""

    kind: Kind
    name: str
    revision: str = ""


def list_weights(weights: Weights) -> dict[Kind, Source]:
    """The two sources that a params section names."""
    return {
        "base": Source("base", weights.base, weights.base_revision),
        "backbone": Source("backbone", weights.backbone, weights.backbone_revision),
    }


def is_folder(source: Source, root: Path) -> bool:
    """A folder, or else a hub id; `InputError` if it can be neither."""
    if (root / source.name).is_dir():
        return True
    if not _HUB_ID.fullmatch(source.name):
        raise InputError(
            f"weights.{source.kind}: {source.name!r} is no folder and no hub id (owner/name); set it right"
        )
    return False


def fetch_source(source: Source, root: Path) -> Path:
    """The folder with the source's files, downloaded unless they are there already. `InputError` names the remedy."""
    if is_folder(source, root):
        return root / source.name
    if not _COMMIT.fullmatch(source.revision):
        raise InputError(
            f"weights.{source.kind}_revision: {source.revision!r} is no commit of {source.name}; "
            "`imprint doctor --download` finds it and writes it there"
        )
    from huggingface_hub import snapshot_download

    with _told_plainly(source):
        return Path(snapshot_download(source.name, revision=source.revision, allow_patterns=_FILES[source.kind]))


def find_cached(source: Source, root: Path) -> Path | None:
    """The folder with the source's files where no download is needed. It may be incomplete: loading tells."""
    if is_folder(source, root):
        return root / source.name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not _COMMIT.fullmatch(source.revision):
        return None
    try:
        options = {"allow_patterns": _FILES[source.kind], "local_files_only": True}
        return Path(snapshot_download(source.name, revision=source.revision, **options))
    except LocalEntryNotFoundError:
        return None


def find_commit(source: Source) -> str:
    """The commit that the hub's main branch is at now."""
    from huggingface_hub import HfApi

    with _told_plainly(source):
        commit = HfApi().model_info(source.name).sha
    assert commit is not None, f"the hub gave no commit for {source.name}"
    return commit


def check_safetensors(folder: Path) -> None:
    """`InputError` if a part's folder has weights of another kind alone, or none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; name a folder in diffusers' layout (unet/, vae/, scheduler/)")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} has {pickled[0]}, a pickle, which is never loaded: it can run code; "
            "take the repository's .safetensors, or convert the file where you trust it"
        )
    raise InputError(f"{folder} has no .safetensors file; download the weights again")


@contextmanager
def _told_plainly(source: Source) -> Iterator[None]:
    """What the hub's client raises, as one line."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError

    where = f"weights.{source.kind}: {source.name}"
    remedy = "put its files in a folder and name that"
    try:
        yield
    except GatedRepoError:
        raise InputError(f"{where} wants its terms accepted on the hub; do that and `hf auth login`") from None
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        told = f"{where} cannot be fetched from the hub ({reason}); check name and network, or {remedy}"
        raise InputError(told) from None
