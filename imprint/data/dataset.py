"""One map-style dataset over positions of a run, and the loader that starts at any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic

from torch.utils.data import DataLoader, Dataset

from imprint.core.errors import InputError
from imprint.core.records import PairKind, PairRecord
from imprint.data.batches import Batch, collate
from imprint.data.cache import count_local_processes, share_budget
from imprint.data.draws import Draw, DrawRules, draw_sample
from imprint.data.shards import ShardReader, View

BuildSample = Callable[[Draw, View, View, Sequence[View]], Batch]  # reference, target, further views


@dataclass(frozen=True, kw_only=True)
class BatchShares:
    """How the samples of a step are divided: into equal parts in the order of their positions, dealt in turn to the
    processes, `accumulate_steps` to each. The samples of a step are the same ones however they are divided."""

    batch_size: int  # of the whole step
    accumulate_steps: int = 1
    num_processes: int = 1
    process_index: int = 0

    @property
    def parts_per_step(self) -> int:
        return self.accumulate_steps * self.num_processes

    @property
    def part_size(self) -> int:
        return self.batch_size // self.parts_per_step

    def list_parts(self, start_step: int, num_steps: int) -> Iterator[range]:
        """The positions of this process's parts, of steps `start_step` to `num_steps`."""
        first, end = (step * self.parts_per_step + self.process_index for step in (start_step, num_steps))
        for part in range(first, end, self.num_processes):
            yield range(part * self.part_size, (part + 1) * self.part_size)


@dataclass(frozen=True)
class PairDataset(Dataset, Generic[Batch]):
    """Sample at position p of a run, for any p >= 0. A pair that cannot be read raises, with its id: mining filters."""

    reader: ShardReader
    pairs: Mapping[PairKind, Sequence[PairRecord]]
    rules: DrawRules
    build_sample: BuildSample[Batch]
    seed: int

    def __getitem__(self, position: int) -> Batch:
        draw = draw_sample(self.rules, self.pairs, seed=self.seed, position=position)
        return _read_sample(self.reader, draw, self.build_sample)


def load_batches(
    dataset: PairDataset[Batch], *, start_step: int, num_steps: int, shares: BatchShares, num_workers: int
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `num_steps` that are this process's: the same ones for any start and any
    number of workers. What is decoded and kept by this process, its workers and those beside it stays in one budget."""
    num_sharing = count_local_processes(shares.num_processes) * (num_workers + 1)
    share_budget(num_sharing)
    loader = DataLoader(
        dataset,
        batch_sampler=shares.list_parts(start_step, num_steps),  # pyright: ignore[reportArgumentType]
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=partial(_open_worker, num_sharing=num_sharing),
        multiprocessing_context="spawn" if num_workers else None,  # a fork after torch's threads may hang
    )
    return iter(loader)


def _open_worker(_number: int, *, num_sharing: int) -> None:
    share_budget(num_sharing)


def build_fixed_batch(
    reader: ShardReader, pairs: Sequence[PairRecord], *, rules: DrawRules, build_sample: BuildSample[Batch], seed: int
) -> Batch:
    """All of `pairs`, each once and in their order: what a model is validated on."""
    samples = []
    for position, pair in enumerate(pairs):
        draw = draw_sample(rules, {pair.kind: [pair]}, seed=seed, position=position)
        samples.append(_read_sample(reader, draw, build_sample))
    return collate(samples)


def _read_sample(reader: ShardReader, draw: Draw, build_sample: BuildSample[Batch]) -> Batch:
    reference, target = reader.read_pair(draw.pair)
    others = reader.read_others(draw.pair, draw.others)
    try:
        return build_sample(draw, reference, target, others)
    except ValueError as error:
        raise InputError(f"pair {draw.pair.pair_id}: {error}; run `dvc repro pack_shards`") from error
