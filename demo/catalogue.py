"""Which clips and cases there are: names, kinds and seeds. Light to import (no renderer)."""

from __future__ import annotations

from dataclasses import dataclass

# Disjoint: an object of one range is in no data of another.
CLIP_SEEDS = range(10_000)
CASE_SEEDS = range(10_000, 20_000)
EXAMPLE_SEEDS = range(20_000, 21_000)
SEGMENTER_SEEDS = range(100_000, 200_000)
TRAINING_SEEDS = range(1_000_000, 2_000_000)
HELD_OUT_SEEDS = range(2_000_000, 2_010_000)

NUM_SINGLE, NUM_MULTI = 48, 24
NUM_CLIPS = NUM_SINGLE + NUM_MULTI
NUM_CASES = 56
MAX_VIEW_CHANGE_DEG = 150  # of a case's farthest reference
NUM_FRAMES = 48
FPS = 12
SIZE_PX = 128

MULTI_KINDS = ("twins", "crossing", "occlusion", "exit_return", "cut")
_MULTI_PLAN = ("twins", "crossing", "occlusion", "exit_return", "cut", "crossing") * 3
_MULTI_PLAN += ("twins", "exit_return", "occlusion", "cut", "crossing", "cut")
_TWIN_EVERY = 4  # of the clips of other kinds


@dataclass(frozen=True)
class ClipEntry:
    """`kind` is "single" or one of MULTI_KINDS; `twins`: the last object is a copy of the first."""

    name: str
    kind: str
    seed: int
    twins: bool = False


def clip_entry(index: int, first_seed: int = CLIP_SEEDS.start) -> ClipEntry:
    """Entry of clip 0 .. NUM_CLIPS - 1, single-object clips first; another first seed: other clips of the same plan."""
    if index < NUM_SINGLE:
        return ClipEntry(f"single_{index:02d}", "single", first_seed + index)
    place = index - NUM_SINGLE
    kind = _MULTI_PLAN[place]
    # A clip draws up to four objects, from its seed on.
    seed = first_seed + 1000 + 7 * place
    return ClipEntry(f"multi_{place:02d}", kind, seed, twins=kind == "twins" or place % _TWIN_EVERY == 1)
