"""Waiting for a prefix that another sequence is computing right now, instead of computing it twice.

Equal prompts that arrive together (`n > 1`, a burst behind one system prompt) would otherwise all miss the cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.sequence import Sequence, SharedPrefill


def find_shared_prefill(
    seq: Sequence, num_cached_pages: int, running: Iterable[Sequence], memory: KVMemory
) -> SharedPrefill | None:
    """A running sequence that will compute at least half of the pages that `seq` could find cached but does not.

    With less in common, waiting would cost `seq` more time than it saves.
    """
    missing = (seq.num_tokens - 1) // memory.page_size - num_cached_pages
    if missing == 0 or not memory.uses_cache(seq):
        return None
    halfway = num_cached_pages + missing // 2
    for leader in running:
        computing = leader.computed_tokens < (num_cached_pages + 1) * memory.page_size
        full_pages = leader.resident_tokens // memory.page_size
        if computing and halfway < full_pages and memory.page_key(leader, halfway) == memory.page_key(seq, halfway):
            return SharedPrefill(leader, leader.tenure, (halfway + 1) * memory.page_size)
    return None
