"""Decoded views that are kept: one budget for all readers of a process, and its share of what its process tree may."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import cache
from typing import Protocol

CACHE_BYTES = 4 << 30  # of decoded views, at most: about 30,000 at 128 px
CACHE_SHARE = 0.25  # of the machine's memory, at most


class Sized(Protocol):
    @property
    def num_bytes(self) -> int: ...


class ViewCache:
    """Views of any number of owners, the least lately used ones dropped. The newest stays, however large it is."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: OrderedDict[tuple[int, str], Sized] = OrderedDict()
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, owner: int, view_id: str) -> Sized | None:
        """The owner's view, if it is kept."""
        view = self._kept.get((owner, view_id))
        if view is not None:
            self._kept.move_to_end((owner, view_id))
        return view

    def put(self, owner: int, view_id: str, view: Sized) -> None:
        """Keep a view that is not kept yet."""
        self._kept[owner, view_id] = view
        self.num_bytes += view.num_bytes
        self.limit(self._max_bytes)

    def limit(self, max_bytes: int) -> None:
        """Keep no more than so many bytes from now on."""
        self._max_bytes = max_bytes
        while self.num_bytes > max_bytes and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def forget(self, owner: int) -> None:
        """Drop an owner's views."""
        for key in [key for key in self._kept if key[0] == owner]:
            self.num_bytes -= self._kept.pop(key).num_bytes


@cache
def get_process_cache() -> ViewCache:
    """The one of this process."""
    return ViewCache(limit_cache_bytes())


def share_budget(num_processes: int) -> None:
    """Keep no more in this process than one of so many equal parts of the budget."""
    get_process_cache().limit(limit_cache_bytes() // num_processes)


def count_local_processes(num_processes: int) -> int:
    """How many of a training's processes are on this machine: a launcher says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))


def limit_cache_bytes() -> int:
    """How much all processes together may keep of what they have decoded."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(CACHE_BYTES, int(CACHE_SHARE * memory_bytes))
