"""What earlier runs have found out about the files of the source: their digests, and what videos and pictures are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from data_prep.children import Helper
from data_prep.ingest.layouts.item import Item
from data_prep.ingest.probe import VideoProbe, probe_item
from imprint.core.files import write_json_atomic
from imprint.core.keys import FileDigests, compute_code_digest

DEADLINE_S = 60.0  # for one item: its first frame, and where a container does not say how many there are, all of them


class SourceMemory:
    """Probes by clip id, good ones alone: another decoder may read what this one cannot.

    folder: where it is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None, *, deadline_s: float = DEADLINE_S) -> None:
        self._folder = folder
        self.files = FileDigests(folder / "digests.json" if folder else None)
        self._code = compute_code_digest("data_prep.ingest.probe")
        self._known = _load_probes(folder / "probes.json", self._code) if folder else {}
        self._found: dict[str, VideoProbe] = {}
        self._helper = Helper(deadline_s)

    def probe(self, item: Item, clip_id: str) -> VideoProbe | str:
        """As `probe_item`, in a child. `ReadFailure` if it does not come to an end, or to a bad one."""
        probe = self._known.get(clip_id) or self._helper.do(probe_item, item)
        if isinstance(probe, VideoProbe):
            self._found[clip_id] = probe
        return probe

    def __enter__(self) -> SourceMemory:
        return self

    def __exit__(self, *_: object) -> None:
        """End the child, and write down what this run has met, however far it came."""
        self._helper.end()
        if self._folder:
            self.files.save()
            probes = {clip_id: asdict(probe) for clip_id, probe in self._found.items()}
            write_json_atomic(self._folder / "probes.json", {"code": self._code, "probes": probes})


def _load_probes(path: Path, code: str) -> dict[str, VideoProbe]:
    """Of the same code. A file that is damaged costs a probing, no more."""
    try:
        values = json.loads(path.read_text())
        return {clip_id: VideoProbe(**probe) for clip_id, probe in values["probes"].items() if values["code"] == code}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
