"""Where pretrained weights come from: a folder, or a repository of the Hugging Face hub at a commit. No pickles.

Whoever names the class to load has the library that it belongs to; nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imprint.core.errors import InputError
from imprint.core.params import Sam2, Weights

Kind = Literal["base", "backbone", "sam2"]
# where the params hold a kind's commit
REVISION_KEYS: dict[Kind, tuple[str, ...]] = {
    "base": ("pretrain_encoder", "weights", "base_revision"),
    "backbone": ("pretrain_encoder", "weights", "backbone_revision"),
    "sam2": ("segment_objects", "sam2", "revision"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_NUM_NAMED = 4  # of the weights that differ
_TRANSFORMERS_FILES = ["config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
# what is fetched of a repository: one copy of the weights, no other precision, nothing pickled
_FILES: dict[Kind, list[str]] = {
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
    "backbone": _TRANSFORMERS_FILES,
    "sam2": _TRANSFORMERS_FILES,
}


@dataclass(frozen=True)
class Source:
    """kind: `base` (U-Net, VAE and scheduler), `backbone` or `sam2` (it follows objects in a video).

    name: a folder or a hub id; revision: the hub's commit.
    """

    kind: Kind
    name: str
    revision: str = ""

    @property
    def key(self) -> str:
        """What the params call it; its commit's key is `REVISION_KEYS`'."""
        return "segment_objects.sam2.weights" if self.kind == "sam2" else f"weights.{self.kind}"


def list_weights(weights: Weights) -> dict[Kind, Source]:
    """The two sources that a params section names."""
    return {
        "base": Source("base", weights.base, weights.base_revision),
        "backbone": Source("backbone", weights.backbone, weights.backbone_revision),
    }


def name_sam2(section: Sam2) -> Source:
    """The source that `segment_objects.sam2` names."""
    return Source("sam2", section.weights, section.revision)


def is_folder(source: Source, root: Path) -> bool:
    """A folder, or else a hub id; `InputError` if it can be neither."""
    if source.name and (root / source.name).is_dir():
        return True
    if not _HUB_ID.fullmatch(source.name):
        raise InputError(f"{source.key}: {source.name!r} is no folder and no hub id (owner/name); set it right")
    return False


def fetch_source(source: Source, root: Path) -> Path:
    """The folder with the source's files, downloaded unless they are there already. `InputError` names the remedy."""
    if is_folder(source, root):
        return root / source.name
    if not _COMMIT.fullmatch(source.revision):
        raise InputError(
            f"{'.'.join(REVISION_KEYS[source.kind])}: {source.revision!r} is no commit of {source.name}; "
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


def load_strictly(
    model_class: Any, folder: Path, *, ignore: Callable[[str], bool] | None = None, **options: Any
) -> Any:
    """A model of a class of transformers or diffusers with the weights in a folder, on the CPU.

    `InputError`, one line, lists the weights that are missing, too much or misshapen; `ignore` says of which names more
    than the class asks for may be there. `options` go to `from_pretrained`.
    """
    check_safetensors(folder)
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        model, found = model_class.from_pretrained(folder, **options, ignore_mismatched_sizes=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder} cannot be loaded ({' '.join(str(error).split())[:200]}); download it again"
        ) from None
    problems = {
        "missing": sorted(found["missing_keys"]),
        "not of this class": sorted(key for key in found["unexpected_keys"] if not (ignore and ignore(key))),
        "of another shape": [_describe_mismatch(entry) for entry in found["mismatched_keys"]],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what} ({_shorten(names)})" for what, names in problems.items() if names)
        raise InputError(
            f"{folder}: weights do not fit {model_class.__name__}: {told}; name another or download it again"
        )
    return model


def _describe_mismatch(entry: Any) -> str:
    name, found, wanted = entry
    return f"{name} {tuple(found)} for {tuple(wanted)}"


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")


@contextmanager
def _told_plainly(source: Source) -> Iterator[None]:
    """What the hub's client raises, as one line."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError

    where = f"{source.key}: {source.name}"
    remedy = "put its files in a folder and name that"
    try:
        yield
    except GatedRepoError:
        raise InputError(f"{where} wants its terms accepted on the hub; do that and `hf auth login`") from None
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        told = f"{where} cannot be fetched from the hub ({reason}); check name and network, or {remedy}"
        raise InputError(told) from None
