"""What a model has learned from: the `sources` of its card, data and models alike, each with its licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imprint.models.checkpoint import load_card

Provenance = dict[str, Any]  # source: folder or model; licence; items: how many of them were used, 0 for a model
NOT_RECORDED = "not recorded"


def list_sources(directory: Path, name: str) -> list[Provenance]:
    """The sources of the model in `directory`; a model whose card names none is a source itself, called `name`."""
    return load_card(directory).get("sources") or [{"source": name, "licence": NOT_RECORDED, "items": 0}]


def describe_weights(weights: Mapping[str, Mapping[str, str]]) -> list[Provenance]:
    """The `weights` of a card, the published ones that training started from, as sources."""
    names = ("@".join(filter(None, (part["name"], part["revision"]))) for part in weights.values())
    return [{"source": name, "licence": NOT_RECORDED, "items": 0} for name in names]


def merge_sources(lists: Sequence[Sequence[Mapping[str, Any]]]) -> list[Provenance]:
    """Each source and licence once, sorted; the most items that one of the lists has."""
    items: dict[tuple[str, str], int] = {}
    for entry in (entry for entries in lists for entry in entries):
        key = entry["source"], entry["licence"]
        items[key] = max(items.get(key, 0), entry["items"])
    return [
        {"source": source, "licence": licence, "items": count} for (source, licence), count in sorted(items.items())
    ]
