"""Training data: views in shards, pairs of them, what is drawn per sample, and typed batches."""

from imprint.data.batches import (
    PAIR_KINDS,
    CompositingBatch,
    IdentityBatch,
    build_compositing_sample,
    build_identity_sample,
    halve_batch,
    move_batch,
    select_rows,
    swap_objects,
)
from imprint.data.dataset import BatchShares, PairDataset, build_fixed_batch, load_batches
from imprint.data.draws import DrawRules
from imprint.data.pairs import check_sizes, choose_strangers, select_pairs, spread_pairs
from imprint.data.shards import ShardReader, View

__all__ = [
    "PAIR_KINDS",
    "BatchShares",
    "CompositingBatch",
    "DrawRules",
    "IdentityBatch",
    "PairDataset",
    "ShardReader",
    "View",
    "build_compositing_sample",
    "build_fixed_batch",
    "build_identity_sample",
    "check_sizes",
    "choose_strangers",
    "halve_batch",
    "load_batches",
    "move_batch",
    "select_pairs",
    "select_rows",
    "spread_pairs",
    "swap_objects",
]
