from __future__ import annotations

import pytest
from tandem_runtime.scheduling.pages import PagePool


class Labels(set[int]):
    def forget(self, page_id: int) -> None:
        self.discard(page_id)


def test_empty_pages_go_before_cached_ones_and_cached_ones_least_recently_used_first() -> None:
    labels = Labels()
    pool = PagePool(5, labels)
    older, newer = pool.allocate(2), pool.allocate(2)
    labels.update(older + newer)
    pool.release(older)
    pool.release(newer)
    assert pool.allocate(1) == [4], "never used"
    # Within one table the tail goes first: the beginning is the part that others may share.
    assert pool.allocate(4) == [older[1], older[0], newer[1], newer[0]]
    assert not labels, "what is overwritten is no longer cached"
    pool.check_integrity()


def test_a_cached_page_that_is_used_again_is_not_evicted() -> None:
    labels = Labels()
    pool = PagePool(2, labels)
    first, second = pool.allocate(2)
    labels.update([first, second])
    pool.release([first, second])
    pool.acquire([second])
    assert pool.allocate(1) == [first]
    assert pool.available == 0
    pool.check_integrity()


def test_a_page_is_free_when_its_last_holder_leaves() -> None:
    pool = PagePool(1, Labels())
    (page,) = pool.allocate(1)
    pool.acquire([page])
    pool.release([page])
    assert pool.available == 0
    pool.release([page])
    assert pool.available == 1
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([page])


def test_the_generation_changes_with_the_owner() -> None:
    pool = PagePool(1, Labels())
    pool.allocate(1)
    granted = pool.generation(0)
    pool.quarantine("r", [0])
    assert pool.generation(0) != granted, "late writes must be refused at once, not only after reuse"
    pool.quiesced("r")
    quiesced = pool.generation(0)
    pool.allocate(1)
    assert pool.generation(0) > quiesced


def test_quarantined_pages_are_neither_used_nor_available_until_quiesced() -> None:
    pool = PagePool(3, Labels())
    pages = pool.allocate(3)
    pool.quarantine("r", pages[:1])
    pool.quarantine("r", pages[1:2])
    assert (pool.used, pool.available, pool.quarantined) == (1, 0, 2)
    pool.check_integrity()
    assert pool.quiesced("other") == 0
    assert pool.quiesced("r") == 2
    assert (pool.used, pool.available, pool.quarantined) == (1, 2, 0)
    assert pool.quiesced("r") == 0
    pool.check_integrity()


def test_a_shared_page_cannot_be_quarantined() -> None:
    pool = PagePool(1, Labels())
    pool.acquire(pool.allocate(1))
    with pytest.raises(AssertionError, match="shared"):
        pool.quarantine("r", [0])


def test_integrity_notices_a_page_that_is_cached_and_still_expects_late_writes() -> None:
    labels = Labels()
    pool = PagePool(1, labels)
    pool.quarantine("r", pool.allocate(1))
    labels.add(0)
    with pytest.raises(AssertionError, match="quarantined page is cached"):
        pool.check_integrity()
