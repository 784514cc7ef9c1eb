"""The page pool: who holds which KV page, and which free page is reused first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol


class PageLabels(Protocol):
    """Which pages still hold content worth keeping; the prefix cache."""

    def __contains__(self, page_id: object) -> bool: ...

    def forget(self, page_id: int) -> None:
        """The page is about to be overwritten."""
        ...


class PagePool:
    """Reference-counted pages. Every page is referenced, free, or quarantined.

    Free pages form one list: those without cached content first, then the cached ones, least recently used first.
    A quarantined page was promised to a remote writer whose late writes may still arrive: it is neither referenced nor
    free until `quiesced`.
    """

    def __init__(self, num_pages: int, labels: PageLabels) -> None:
        self.num_pages = num_pages
        self._labels = labels
        self._references = [0] * num_pages
        self._generations = [0] * num_pages
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))
        self._quarantine: dict[str, list[int]] = {}
        self._num_quarantined = 0

    @property
    def available(self) -> int:
        """Pages that `allocate` can give now, cached ones included."""
        return len(self._free)

    @property
    def quarantined(self) -> int:
        return self._num_quarantined

    @property
    def used(self) -> int:
        return self.num_pages - len(self._free) - self._num_quarantined

    def references(self, page_id: int) -> int:
        return self._references[page_id]

    def generation(self, page_id: int) -> int:
        """Bumped each time the page changes owner; a write that names an older one must be refused."""
        return self._generations[page_id]

    def allocate(self, count: int) -> list[int]:
        """Takes `count` pages with one reference each; evicts cached content, least recently used first."""
        assert count <= len(self._free), "the caller checks `available`"
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._labels.forget(page)
            self._references[page] = 1
            self._generations[page] += 1
        return pages

    def acquire(self, page_ids: Iterable[int]) -> None:
        """One more reference to pages whose content is cached."""
        for page in page_ids:
            if self._references[page] == 0:
                del self._free[page]
            self._references[page] += 1

    def release(self, page_ids: list[int]) -> None:
        """Drops one reference to each page of a table (or a part of one, in its order)."""
        # In reverse, so that the end of a cached chain is evicted before the beginning that others may share.
        for page in reversed(page_ids):
            self._references[page] -= 1
            assert self._references[page] >= 0, f"page {page} released twice"
            if self._references[page] == 0:
                self._append_free(page)

    def quarantine(self, key: str, page_ids: list[int]) -> None:
        """Withdraws pages that only `key` holds until its late writes have quiesced."""
        for page in page_ids:
            assert self._references[page] == 1, f"page {page} is shared, nobody may write to it"
            self._references[page] = 0
            self._generations[page] += 1
        self._quarantine.setdefault(key, []).extend(page_ids)
        self._num_quarantined += len(page_ids)

    def quiesced(self, key: str) -> int:
        """No late write of `key` can come any more; returns the number of pages freed."""
        pages = self._quarantine.pop(key, [])
        self._num_quarantined -= len(pages)
        for page in pages:
            self._append_free(page)
        return len(pages)

    def _append_free(self, page: int) -> None:
        self._free[page] = None
        if page not in self._labels:
            self._free.move_to_end(page, last=False)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance. O(pages): for tests."""
        quarantined = [page for pages in self._quarantine.values() for page in pages]
        assert len(quarantined) == len(set(quarantined)) == self._num_quarantined
        assert not set(quarantined) & self._free.keys()
        idle = {page for page, count in enumerate(self._references) if count == 0}
        assert idle == set(quarantined) | self._free.keys(), "an unreferenced page is neither free nor quarantined"
        assert not any(page in self._labels for page in quarantined), "a quarantined page is cached"
        labelled = [page in self._labels for page in self._free]
        assert labelled == sorted(labelled), "a cached page would be evicted before an empty one"
