"""Page tables of sequences: the page pool and the prefix cache, used together."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from tandem_runtime.scheduling.pages import PagePool
from tandem_runtime.scheduling.prefix_cache import PageChain, PageKey, PrefixCache
from tandem_runtime.scheduling.sequence import Sequence


class KVMemory:
    def __init__(self, *, num_pages: int, page_size: int, cache_root: bytes, enable_prefix_caching: bool) -> None:
        self.page_size = page_size
        self.pool = PagePool(num_pages, cache := PrefixCache(cache_root))
        self._cache = cache
        self._caching = enable_prefix_caching

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def chain(self, cache_salt: str) -> PageChain:
        return self._cache.chain(cache_salt)

    def page_key(self, seq: Sequence, index: int) -> PageKey:
        """Of a full page of known tokens; the pages before it are hashed on the way."""
        chain = seq.chain
        for page in range(len(chain), index + 1):
            chain.append(seq.token_range(page * self.page_size, (page + 1) * self.page_size))
        return chain[index]

    def match_prefix(self, token_ids: Tokens[int], cache_salt: str) -> int:
        """Tokens held in the cache now that a prompt of these tokens could use; takes no reference."""
        chain = self.chain(cache_salt)
        found = 0
        while self._caching and found + self.page_size < len(token_ids):
            chain.append(token_ids[found : found + self.page_size])
            if self._cache.find(chain[-1]) is None:
                break
            found += self.page_size
        return found

    def find_prefix(self, seq: Sequence) -> list[int]:
        """Cached pages for the beginning of `seq`, never those of its newest token: that one is always computed."""
        if not self.uses_cache(seq):
            return []
        found: list[int] = []
        for index in range((seq.num_tokens - 1) // self.page_size):
            page = self._cache.find(self.page_key(seq, index))
            if page is None:
                break
            found.append(page)
        return found

    def uses_cache(self, seq: Sequence) -> bool:
        """Whether it may start from cached pages: not while its prompt's logprobs are wanted."""
        return self._caching and seq.prompt_logprobs is None

    def cost(self, prefix: list[int], num_tokens: int) -> int:
        """Free pages it takes to hold `num_tokens` of which `prefix` is cached (some of it in free pages)."""
        revived = sum(self.pool.references(page) == 0 for page in prefix)
        return self.pages_for(num_tokens) - len(prefix) + revived

    def take(self, seq: Sequence, prefix: list[int], num_tokens: int) -> None:
        """Gives `seq` its first page table; the caller has checked `cost`."""
        self.pool.acquire(prefix)
        seq.pages = prefix + self.pool.allocate(self.pages_for(num_tokens) - len(prefix))
        seq.pages_registered = len(prefix)
        seq.scheduled_tokens = seq.computed_tokens = len(prefix) * self.page_size

    def grow(self, seq: Sequence) -> list[int]:
        """One more page at the end of the table."""
        pages = self.pool.allocate(1)
        seq.pages += pages
        return pages

    def capacity(self, seq: Sequence) -> int:
        """Tokens that the page table has room for."""
        return len(seq.pages) * self.page_size

    def grow_to(self, seq: Sequence, num_tokens: int, *, at_most: int) -> list[int]:
        """The pages that are missing at the end of the table to hold `num_tokens`, as far as `at_most` goes."""
        missing = self.pages_for(num_tokens) - len(seq.pages)
        pages = self.pool.allocate(max(0, min(missing, at_most)))
        seq.pages += pages
        return pages

    def lacks_page(self, seq: Sequence) -> bool:
        """Whether the next token to be computed lies beyond the page table."""
        return seq.scheduled_tokens == self.capacity(seq)

    def register(self, seq: Sequence) -> None:
        """Offers the full pages that committed steps computed to the prefix cache."""
        if not self._caching:
            return
        full = seq.computed_tokens // self.page_size
        for index in range(seq.pages_registered, full):
            self._cache.insert(self.page_key(seq, index), seq.pages[index])
        seq.pages_registered = full

    def check_integrity(self) -> None:
        self.pool.check_integrity()
        self._cache.check_integrity()
