"""The sending side: a rank's KV cache as receivers read it."""

from __future__ import annotations

import xxhash

from tandem_runtime.transfer.descriptors import Described
from tandem_runtime.transfer.ledger import Exported
from tandem_runtime.transfer.memory import PageSource
from tandem_runtime.transfer.nixl.agent import NixlAgent, Region
from tandem_runtime.transfer.plan import byte_range


class NixlExport:
    def __init__(self, agent: NixlAgent, cache: Region, source: PageSource) -> None:
        """`cache`: all pages of the rank; `source`: the same pages, to hash them. Raises `StartupError`."""
        self._agent = agent
        self._source = source
        self._cache = cache
        agent.register(cache)
        self.exported: Exported = agent.exported(cache)

    def describe(self, page_id: int, heads: range) -> Described:
        layout = self._source.layout
        offset, length = byte_range(layout, self._source.rank, heads)
        start = page_id * layout.page_bytes + offset
        assert 0 <= start <= start + length <= self._cache.num_bytes, page_id
        checksum = xxhash.xxh3_64_intdigest(self._source.outgoing(page_id, heads))
        self._source.sent(page_id, heads)
        return Described(self._cache.address + start, length, checksum)

    def close(self) -> None:
        self._agent.deregister(self._cache)
