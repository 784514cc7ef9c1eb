"""One peer's reads do not take every slot."""

from __future__ import annotations

from typing import Any, cast

from tandem_runtime.transfer.ledger import Exported
from tandem_runtime.transfer.nixl.agent import NixlAgent
from tandem_runtime.transfer.nixl.reads import NixlReads


class StuckRead:
    def __init__(self) -> None:
        self.done = False

    def poll(self) -> bool:
        return self.done


class StuckAgent:
    """Of peers whose reads end when the test says so."""

    def __init__(self) -> None:
        self.reads: list[StuckRead] = []

    def register(self, region: Any) -> None: ...

    def connect(self, metadata: bytes) -> str:
        return metadata.decode()

    def disconnect(self, peer: str) -> None: ...

    def read(self, *what: Any) -> StuckRead:
        self.reads.append(StuckRead())
        return self.reads[-1]


def test_a_frozen_peer_leaves_slots_for_others() -> None:
    """Symptom: 32 streams of one frozen pod held all 256 slots, and every other pod's handoffs stalled."""
    agent = StuckAgent()
    reads = NixlReads(cast("NixlAgent", agent), 1024, max_slots=4, max_slots_of_a_peer=2)
    frozen, other = (reads.join(Exported(name, "DRAM", 0)) for name in (b"frozen", b"other"))
    stuck = [reads.start(frozen, 0, 1024) for _ in range(3)]
    assert [read is not None for read in stuck] == [True, True, False]
    for read in stuck[:2]:
        assert read is not None
        reads.abandon(read)
    assert reads.start(frozen, 0, 1024) is None
    assert reads.start(other, 0, 1024) is not None
    for each in agent.reads[:2]:
        each.done = True
    reads.sweep()
    assert reads.start(frozen, 0, 1024) is not None
