"""One handoff seen as a whole: fans transfer jobs out to every tensor-parallel rank and joins their reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tandem_runtime.transfer.protocol import PageReceiver, PageSender, ReceiveJob, ReceiveReport, SendJob, SendReport


class RankTransfers(Protocol):
    """The receiver and sender of one rank, in this process or behind a worker's socket."""

    @property
    def data_port(self) -> int: ...
    @property
    def transports(self) -> list[str]: ...
    @property
    def ipc_path(self) -> str: ...
    def open_receive(self, job: ReceiveJob) -> None: ...
    def close_receive(self, job_id: str, reason: str) -> None: ...
    def open_send(self, job: SendJob) -> None: ...
    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None: ...
    def finish_send(self, job_id: str) -> None: ...
    def abort_send(self, job_id: str, reason: str) -> None: ...
    def close(self) -> None: ...


class LocalTransfers:
    """A rank's transports in this process."""

    def __init__(
        self, receiver: PageReceiver, sender: PageSender, transports: Sequence[str] = (), ipc_path: str = ""
    ) -> None:
        """`transports`: those of the receiver besides TCP; `ipc_path`: where it is for processes of its machine."""
        self._receiver = receiver
        self.transports = list(transports)
        self.ipc_path = ipc_path
        self._sender = sender
        self.open_receive = receiver.open
        self.close_receive = receiver.close
        self.open_send = sender.open
        self.send = sender.send
        self.finish_send = sender.finish
        self.abort_send = sender.abort

    @property
    def data_port(self) -> int:
        return self._receiver.port

    def close(self) -> None:
        self._receiver.stop()
        self._sender.stop()


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """A job is over on every rank: nothing will read or write its pages again."""

    job_id: str
    error: str | None
    """The first rank's error, None when every page arrived and was verified everywhere."""
    pages: int
    bytes: int
    transport: str | None = None
    """Of received pages, as `--kv-transport`; joined by `+` where ranks differ."""


class TransferGroup:
    """Used on the engine's thread only; ranks report into the engine's inbox, which calls `on_rank_report`."""

    def __init__(
        self,
        ranks: Sequence[RankTransfers],
        *,
        on_received: Callable[[JobReport], None],
        on_sent: Callable[[JobReport], None],
    ) -> None:
        self._ranks = ranks
        self._on_received = on_received
        self._on_sent = on_sent
        self._receiving: dict[str, list[ReceiveReport]] = {}
        self._sending: dict[str, list[SendReport]] = {}

    @property
    def data_ports(self) -> list[int]:
        return [rank.data_port for rank in self._ranks]

    @property
    def transports(self) -> list[str]:
        """How every rank can take pages, besides TCP."""
        first, *others = (rank.transports for rank in self._ranks)
        return [name for name in first if all(name in other for other in others)]

    @property
    def ipc_paths(self) -> list[str]:
        """Of every rank; empty when they have none."""
        return [rank.ipc_path for rank in self._ranks if rank.ipc_path]

    @property
    def tensor_parallel(self) -> int:
        return len(self._ranks)

    def open_receive(self, job: ReceiveJob) -> None:
        """Raises `HandoffError` when the ranks of both sides cannot be matched; nothing is open then."""
        for rank in self._ranks:
            rank.open_receive(job)
        self._receiving[job.job_id] = []

    def close_receive(self, job_id: str, reason: str) -> None:
        for rank in self._ranks:
            rank.close_receive(job_id, reason)

    def open_send(self, job: SendJob) -> None:
        """Raises `HandoffError` when the ranks of both sides cannot be matched; nothing is open then."""
        for rank in self._ranks:
            rank.open_send(job)
        self._sending[job.job_id] = []

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        for rank in self._ranks:
            rank.send(job_id, first_index, page_ids)

    def finish_send(self, job_id: str) -> None:
        for rank in self._ranks:
            rank.finish_send(job_id)

    def abort_send(self, job_id: str, reason: str) -> None:
        for rank in self._ranks:
            rank.abort_send(job_id, reason)

    def on_rank_report(self, report: ReceiveReport | SendReport) -> None:
        """One failed rank ends the job on all of them; the job's report comes when the last rank is quiet."""
        if isinstance(report, ReceiveReport):
            received = self._receiving[report.job_id]
            received.append(report)
            if joined := self._join(report.job_id, received, self.close_receive):
                del self._receiving[report.job_id]
                self._on_received(joined)
        else:
            sent = self._sending[report.job_id]
            sent.append(report)
            if joined := self._join(report.job_id, sent, self.abort_send):
                del self._sending[report.job_id]
                self._on_sent(joined)

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()

    def _join(
        self, job_id: str, reports: Sequence[ReceiveReport | SendReport], end: Callable[[str, str], None]
    ) -> JobReport | None:
        errors = [f"{report.error}: {report.detail}" for report in reports if not report.ok]
        if len(reports) < len(self._ranks):
            if len(errors) == 1 and not reports[-1].ok:
                end(job_id, errors[0])
            return None
        ways = {way for report in reports if isinstance(report, ReceiveReport) for way in report.transports}
        return JobReport(
            job_id=job_id,
            error=errors[0] if errors else None,
            pages=max(report.pages for report in reports),
            bytes=sum(report.bytes for report in reports),
            transport="+".join(sorted(ways)) or None,
        )
