"""The prefix cache: which page holds the KV of which tokens after which tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import NamedTuple

DIGEST_BYTES = 16


class PageKey(NamedTuple):
    """Identifies the content of one full page."""

    digest: bytes
    """blake2b-128 over the previous page's digest and `content`."""
    content: bytes
    """The page's token ids; compared on every hit, so that a collision of digests is a miss and never wrong KV."""


class PageChain:
    """The keys of one sequence's first full pages; each is hashed once."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._keys: list[PageKey] = []

    def append(self, page_token_ids: Tokens[int]) -> None:
        parent = self._keys[-1].digest if self._keys else self._root
        content = array("I", page_token_ids).tobytes()
        self._keys.append(PageKey(blake2b(parent + content, digest_size=DIGEST_BYTES).digest(), content))

    def __getitem__(self, index: int) -> PageKey:
        return self._keys[index]

    def __len__(self) -> int:
        return len(self._keys)


class PrefixCache:
    """Full, computed pages by content. Which of them is evicted first is the page pool's knowledge.

    `root` stands for everything besides the tokens that shapes KV (the layout fingerprint's digest).
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._page_by_digest: dict[bytes, int] = {}
        self._key_by_page: dict[int, PageKey] = {}

    def chain(self, cache_salt: str) -> PageChain:
        """An empty chain; chains of different salts share no page."""
        root = len(self._root).to_bytes(4, "big") + self._root + cache_salt.encode()
        return PageChain(blake2b(root, digest_size=DIGEST_BYTES).digest())

    def find(self, key: PageKey) -> int | None:
        page = self._page_by_digest.get(key.digest)
        if page is None or self._key_by_page[page].content != key.content:
            return None
        return page

    def insert(self, key: PageKey, page_id: int) -> None:
        """Labels a computed page; the first page with a content keeps the label."""
        if self._page_by_digest.setdefault(key.digest, page_id) == page_id:
            self._key_by_page[page_id] = key

    def forget(self, page_id: int) -> None:
        key = self._key_by_page.pop(page_id, None)
        if key is not None:
            del self._page_by_digest[key.digest]

    def __contains__(self, page_id: object) -> bool:
        return page_id in self._key_by_page

    def __len__(self) -> int:
        return len(self._key_by_page)

    def check_integrity(self) -> None:
        assert {key.digest: page for page, key in self._key_by_page.items()} == self._page_by_digest
