"""The sending side: what goes along with the hello of a stream to a receiver on this machine."""

from __future__ import annotations

from tandem_runtime.transfer.descriptors import Described
from tandem_runtime.transfer.ipc.doors import LifeLine
from tandem_runtime.transfer.ipc.memory import Export


class IpcExport:
    """Used on its sender's thread only."""

    def __init__(self, export: Export) -> None:
        self.offer = export.offer
        self._export = export
        self._life_line = LifeLine()

    def files(self) -> list[int]:
        """The memory, and a socket that hangs up when this process ends: `reads.IpcReads.join`'s."""
        return [self._export.file(), self._life_line.far_end.fileno()]

    def describe(self, page_id: int, heads: range) -> Described:
        return self._export.describe(page_id, heads)

    def close(self) -> None:
        self._life_line.close()
