"""The decode side of handoffs: asks prefill pods for prompts, grants pages, falls back when a pod fails.

A remote sequence goes  asked -> queued -> receiving -> filled, or to the next ticket's pod, or to local prefill.
Its pages, once reserved, survive a failover: a new attempt opens only after the old one's transfer is quiet.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tandem_contract import handoff
from tandem_tracing.context import TraceContext

from tandem_runtime.core.errors import HandoffError
from tandem_runtime.engine.avoidance import Avoided
from tandem_runtime.engine.control import decode, same_secret
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.messages import ControlCall, EngineRequest
from tandem_runtime.engine.prefill_peers import PROBE_INTERVAL_S, PrefillPeers
from tandem_runtime.engine.spans import attempt_spans
from tandem_runtime.engine.transfers import JobReport
from tandem_runtime.transfer.protocol import ReceiveJob

AVOID_SECONDS = 5.0
"""A pod at fault is not asked again for this long."""
POD_FAULTS = frozenset({"unreachable", "peer_lost", "transfer", "busy"})
"""Reasons that say something about the pod, not about the one request."""
MAX_TENSOR_PARALLEL = 1024


@dataclass(slots=True)
class HandoffRecord:
    """What became of a request's handoff; kept for its trace."""

    prefill_pod: str | None = None
    pages: int = 0
    bytes: int = 0
    seconds: float = 0.0
    transport: str | None = None
    fallback: str | None = None
    """Why the decode pod computed the prompt itself, after all."""
    settled_at: float | None = None
    """In the engine's clock; None while a prefill pod is being asked."""


@dataclass(slots=True)
class _Remote:
    request: EngineRequest
    held_tokens: int
    record: HandoffRecord
    slots: list[tuple[int, int]] | None = None
    """Reserved (page, generation) pairs, from the first granted attempt on."""
    ticket_index: int = 0
    job: _Job | None = None
    gone: bool = False
    """Aborted or expired; only quiescence is awaited."""


@dataclass(slots=True)
class _Job:
    job_id: str
    url: str
    pod: str
    """Its address until it tells its name."""
    incarnation: str
    asked_at: float
    trace: TraceContext | None
    """Of this attempt's span, below the request's."""
    granted_at: float | None = None
    phase: Literal["asked", "queued", "receiving"] = "asked"
    """`asked` until P took the job: before that a probe of P says nothing about it."""
    token: str = ""
    grant: handoff.ReserveGrant | None = None
    error: tuple[str, str] | None = None
    """(reason label, message) of a job that is closing."""


class DecodeHandoffs:
    """Used on the engine's thread only."""

    def __init__(self, parts: HandoffParts, *, url: str, probe_interval_s: float = PROBE_INTERVAL_S) -> None:
        self._parts = parts
        self._url = url
        self._peers = PrefillPeers(parts, url=url, interval_s=probe_interval_s, on_lost=self._on_lost)
        self._remotes: dict[str, _Remote] = {}
        self._jobs: dict[str, _Remote] = {}
        self._avoided = Avoided(parts.clock, AVOID_SECONDS)
        self.outcomes: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.pages = 0
        self.bytes = 0

    @property
    def routes(self) -> dict[str, Callable[[ControlCall], None]]:
        return {handoff.RESERVE_PATH: self.on_reserve, handoff.FINISH_PATH: self.on_finish}

    @property
    def open_jobs(self) -> int:
        return len(self._remotes)

    def start(self, request: EngineRequest, record: HandoffRecord) -> None:
        """`request` is in the scheduler as a remote sequence; it will be filled or made local."""
        held = self._parts.scheduler.hold_prefix(request.request_id)
        remote = _Remote(request, held, record)
        self._remotes[request.request_id] = remote
        self._next_attempt(remote, reason="avoided")

    def drop(self, request_id: str) -> None:
        """The scheduler ended the sequence (abort, deadline): stop the transfer, free its pages once quiet."""
        remote = self._remotes.get(request_id)
        if remote is None:
            return
        remote.gone = True
        if remote.job is None:
            self._forget(remote)
        else:
            self._fail(remote.job, "aborted", "the request was aborted")

    def on_reserve(self, call: ControlCall) -> None:
        ask = decode(call.body, handoff.ReserveAsk)
        remote = self._jobs.get(ask.job_id)
        job = remote.job if remote else None
        if remote is None or job is None or ask.prefill_incarnation != job.incarnation:
            self._parts.control.answer(call, 404)
            return
        if not 1 <= ask.prefill_tensor_parallel <= MAX_TENSOR_PARALLEL:
            self._parts.control.answer(call, 400)
            return
        if job.grant is not None:
            # P asks again when the first answer was lost.
            same = same_secret(ask.token, job.token)
            self._parts.control.answer(call, 200 if same else 404, job.grant if same else None)
            return
        if remote.slots is None:
            remote.slots = self._parts.scheduler.reserve(remote.request.request_id)
        if remote.slots is None:
            self._parts.control.answer(call, 503)
            return
        job.token = ask.token
        job.pod = ask.prefill_pod
        data_token = secrets.token_urlsafe(16)
        receive = ReceiveJob(
            job_id=job.job_id, data_token=data_token, sender_tp=ask.prefill_tensor_parallel, slots=remote.slots
        )
        try:
            self._parts.transfers.open_receive(receive)
        except HandoffError as error:
            self._parts.control.answer(call, 409, {"error": str(error)})
            self._fail(job, error.reason, str(error))
            return
        job.phase = "receiving"
        self._peers.took(job.job_id)
        job.granted_at = self._parts.clock()
        job.grant = handoff.ReserveGrant(
            token=ask.token,
            data_token=data_token,
            data_ports=self._parts.transfers.data_ports,
            transports=self._parts.transfers.transports,
            ipc_paths=self._parts.transfers.ipc_paths,
            first_page=remote.held_tokens // self._parts.fingerprint.page_size,
            slots=[handoff.PageSlot(page_id=page, generation=generation) for page, generation in remote.slots],
        )
        self._parts.control.answer(call, 200, job.grant)

    def on_finish(self, call: ControlCall) -> None:
        """P's word that it gave up."""
        end = decode(call.body, handoff.JobEnd)
        remote = self._jobs.get(end.job_id)
        self._parts.control.answer(call, 200)
        if remote is None or remote.job is None or end.error is None:
            return
        if remote.job.phase != "receiving" or same_secret(end.token, remote.job.token):
            self._fail(remote.job, "prefill_error", end.error)

    def on_received(self, report: JobReport) -> None:
        """The transfer is over and quiet."""
        remote = self._jobs.pop(report.job_id)
        job = remote.job
        assert job is not None
        remote.job = None
        self._peers.settle(job.job_id)
        error = job.error or (("transfer", report.error) if report.error else None)
        self._post_ack(job, error[1] if error else None)
        self._tell(remote, job, report, error)
        if remote.gone:
            self.outcomes["received/aborted"] += 1
            self._forget(remote)
        elif error is not None:
            self.outcomes[f"received/{error[0]}"] += 1
            if error[0] in POD_FAULTS:
                self._avoided.add(job.url)
            self._next_attempt(remote, reason=error[0])
        else:
            self.outcomes["received/ok"] += 1
            self.pages += report.pages
            self.bytes += report.bytes
            remote.record.prefill_pod = job.pod
            remote.record.pages = report.pages
            remote.record.bytes = report.bytes
            remote.record.transport = report.transport
            remote.record.settled_at = self._parts.clock()
            remote.record.seconds = remote.record.settled_at - job.asked_at
            self._parts.scheduler.filled(remote.request.request_id)
            del self._remotes[remote.request.request_id]

    def _next_attempt(self, remote: _Remote, *, reason: str) -> None:
        """Asks the next ticket's pod; a ticket is used once, as its nonce is spent by asking."""
        tickets = remote.request.tickets
        while remote.ticket_index < len(tickets):
            signed = tickets[remote.ticket_index]
            remote.ticket_index += 1
            if signed.ticket.prefill_url not in self._avoided:
                break
        else:
            self._make_local(remote, reason)
            return
        ticket = signed.ticket
        job = _Job(
            job_id=f"{remote.request.request_id}.{remote.ticket_index}.{secrets.token_hex(4)}",
            url=ticket.prefill_url,
            pod=f"{ticket.prefill_host}:{ticket.prefill_port}",
            incarnation=ticket.prefill_incarnation,
            asked_at=self._parts.clock(),
            trace=remote.request.trace.child() if remote.request.trace else None,
        )
        remote.job = job
        self._jobs[job.job_id] = remote
        self._peers.owe(job.url, job.incarnation, job.job_id)
        message = handoff.PrefillJob(
            job_id=job.job_id,
            request_id=remote.request.request_id,
            ticket=signed.text,
            token_ids=remote.request.known_token_ids,
            held_tokens=remote.held_tokens,
            fingerprint=self._parts.fingerprint,
            decode_url=self._url,
            decode_incarnation=self._parts.incarnation,
            cache_salt=remote.request.cache_salt,
            priority=remote.request.priority,
            deadline_s=remote.request.deadline_s,
            traceparent=job.trace.traceparent if job.trace else "",
            tracestate=job.trace.state if job.trace else "",
        )
        self._parts.control.post(
            job.url, handoff.PREFILL_PATH, message, lambda status, body: self._on_asked(job, status, body)
        )

    def _on_asked(self, job: _Job, status: int, body: bytes) -> None:
        # A pod that has asked for pages has the job, however late its first answer comes, or if it is lost.
        if job.job_id not in self._jobs or job.phase == "receiving":
            return
        if status == 202:
            if job.phase == "asked":
                job.phase = "queued"
                self._peers.took(job.job_id)
            return
        reason = {0: "unreachable", 401: "ticket", 409: "mismatch", 503: "busy"}.get(status, "refused")
        self._fail(job, reason, f"prefill pod {job.pod} answered {status}: {body[:200].decode(errors='replace')}")

    def _fail(self, job: _Job, reason: str, message: str) -> None:
        """Ends a job; what follows happens once its transfer, if any, is quiet."""
        if job.error is not None:
            return
        job.error = (reason, message)
        if job.phase == "receiving":
            self._parts.transfers.close_receive(job.job_id, message)
        else:
            self.on_received(JobReport(job_id=job.job_id, error=message, pages=0, bytes=0))

    def _on_lost(self, job_id: str, *, forgotten: bool) -> None:
        """By its pod: which is gone or frozen, or has only `forgotten` the job."""
        job = self._jobs[job_id].job
        # P forgets a job once every page is sent; one that is still arriving is not lost by that.
        if job is not None and (not forgotten or job.phase == "queued"):
            self._fail(job, "peer_lost", f"prefill pod {job.pod} is gone or frozen")

    def _make_local(self, remote: _Remote, reason: str) -> None:
        self.fallbacks[reason] += 1
        remote.record.fallback, remote.record.settled_at = reason, self._parts.clock()
        request_id = remote.request.request_id
        del self._remotes[request_id]
        self._parts.scheduler.make_local(request_id)
        self._parts.scheduler.quiesced(request_id)

    def _tell(self, remote: _Remote, job: _Job, report: JobReport, error: tuple[str, str] | None) -> None:
        """Of an attempt that is over."""
        parent = remote.request.trace
        if parent is None or job.trace is None:
            return
        self._parts.on_spans(
            attempt_spans(
                job.trace,
                parent,
                remote.request.request_id,
                prefill_pod=job.pod,
                asked=job.asked_at,
                granted=job.granted_at,
                ended=self._parts.clock(),
                moved={"tandem.handoff.pages": report.pages, "tandem.handoff.bytes": report.bytes},
                error=error,
            )
        )

    def _forget(self, remote: _Remote) -> None:
        del self._remotes[remote.request.request_id]
        self._parts.scheduler.quiesced(remote.request.request_id)

    def _post_ack(self, job: _Job, error: str | None) -> None:
        if job.token:
            end = handoff.JobEnd(job_id=job.job_id, token=job.token, error=error)
            self._parts.control.post(job.url, handoff.ACK_PATH, end)
