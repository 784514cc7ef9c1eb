"""The decode side of handoffs: pages that wait for a prefill pod to fill them."""

from __future__ import annotations

from collections import Counter

import msgspec

from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.sequence import Sequence

SET_ASIDE_SECONDS = 2.0
"""How long pages are kept together for a refused reservation after it was last asked for."""


class _Claim(msgspec.Struct):
    held: int
    """Leading pages of the table that come from the prefix cache."""
    reserved: bool = False


class _Refusal(msgspec.Struct, frozen=True):
    seq: Sequence
    pages: int
    asked_at: float


class Reservations:
    """Pages of sequences in state REMOTE.

    A held prefix is pinned until the sequence is filled or given up. Two sequences that pin what the other one still
    needs would wait for ever, so a prefix is only held while each holder, once all else has ended, could reserve the
    rest. A refused reservation has free pages set aside for it, so that a stream of small requests cannot starve it.
    """

    def __init__(self, memory: KVMemory) -> None:
        self._memory = memory
        self._pool = memory.pool
        self._claims: dict[str, _Claim] = {}
        self._holders: dict[str, Sequence] = {}
        """Sequences that pin pages and have not reserved."""
        self._pins: Counter[int] = Counter()
        """By page: how many holders pin it."""
        self._refusal: _Refusal | None = None

    def hold(self, seq: Sequence, now: float) -> int:
        """Pins the cached prefix of `seq`, or nothing; returns the tokens pinned."""
        claim = self._claims.setdefault(seq.request_id, _Claim(held=0))
        if self._refused_before(seq, now):
            return 0
        prefix = self._memory.find_prefix(seq)
        missing = max((self._missing(holder) for holder in self._holders.values()), default=0)
        missing = max(missing, self._table_size(seq) - len(prefix))
        new_pins = sum(page not in self._pins for page in prefix)
        if prefix and len(self._pins) + new_pins + missing <= self._pool.num_pages:
            self._memory.take(seq, prefix, len(prefix) * self._memory.page_size)
            claim.held = len(prefix)
            self._holders[seq.request_id] = seq
            self._pins.update(prefix)
        return claim.held * self._memory.page_size

    def reserve(self, seq: Sequence, *, keep_free: int, now: float) -> list[tuple[int, int]] | None:
        """(page id, generation) for every page after the held ones; None when fewer than `keep_free` would be left."""
        claim = self._claims.setdefault(seq.request_id, _Claim(held=0))
        if not claim.reserved:
            missing = self._missing(seq)
            if self._pool.available < missing + keep_free + self.set_aside(seq, now):
                self._refuse(seq, missing, now)
                return None
            self._unpin(seq)
            seq.pages = seq.pages + self._pool.allocate(missing)
            claim.reserved = True
        return [(page, self._pool.generation(page)) for page in seq.pages[claim.held :]]

    def set_aside(self, seq: Sequence, now: float) -> int:
        """Free pages that `seq` must leave for a more urgent sequence whose reservation was refused."""
        refusal = self._refused_before(seq, now)
        return refusal.pages if refusal is not None and self.attainable(refusal.pages) else 0

    def attainable(self, pages: int) -> bool:
        """Whether so many pages can come free while every holder keeps what it pins."""
        return pages + len(self._pins) <= self._pool.num_pages

    def filled(self, seq: Sequence) -> None:
        """The reserved pages hold the KV of all known tokens but the last."""
        claim = self._claims.pop(seq.request_id)
        assert claim.reserved, "filled before it was reserved"
        self._forget_refusal(seq)
        seq.cached_tokens = claim.held * self._memory.page_size
        seq.scheduled_tokens = seq.computed_tokens = seq.num_tokens - 1
        self._memory.register(seq)

    def dissolve(self, seq: Sequence) -> None:
        """Gives up, if there is anything: held pages are released, reserved ones quarantined under the request id."""
        claim = self._claims.pop(seq.request_id, None)
        if claim is None:
            return
        self._forget_refusal(seq)
        self._unpin(seq)
        self._pool.release(seq.pages[: claim.held])
        if claim.reserved:
            self._pool.quarantine(seq.request_id, seq.pages[claim.held :])
        seq.drop_pages()

    def _table_size(self, seq: Sequence) -> int:
        return self._memory.pages_for(seq.num_tokens - 1)

    def _missing(self, seq: Sequence) -> int:
        return self._table_size(seq) - len(seq.pages)

    def _unpin(self, seq: Sequence) -> None:
        if self._holders.pop(seq.request_id, None) is not None:
            for page in seq.pages:
                self._pins[page] -= 1
                if self._pins[page] == 0:
                    del self._pins[page]

    def _refused_before(self, seq: Sequence, now: float) -> _Refusal | None:
        """A recent refusal of a more urgent sequence."""
        refusal = self._refusal
        if refusal is None or refusal.seq.rank >= seq.rank or now - refusal.asked_at > SET_ASIDE_SECONDS:
            return None
        return refusal

    def _refuse(self, seq: Sequence, pages: int, now: float) -> None:
        standing = self._refusal
        if standing is None or seq.rank <= standing.seq.rank or now - standing.asked_at > SET_ASIDE_SECONDS:
            self._refusal = _Refusal(seq, pages, now)

    def _forget_refusal(self, seq: Sequence) -> None:
        if self._refusal is not None and self._refusal.seq is seq:
            self._refusal = None

    def check_integrity(self) -> None:
        pins = Counter(page for holder in self._holders.values() for page in holder.pages)
        assert pins == self._pins
        needs = [self._missing(holder) for holder in self._holders.values()]
        assert not needs or len(pins) + max(needs) <= self._pool.num_pages, "holders block one another"
