"""The prefill side of handoffs: queues jobs, asks for pages near the queue's head, streams pages per finished chunk.

A job goes  queued -> asking -> sending -> sent -> gone. Its sequence's pages are released only after the sender's
report (nothing reads them any more) and D's ack, the lease's end, or a new incarnation of D, whichever comes first.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from tandem_contract import handoff
from tandem_tracing.context import TraceContext
from tandem_tracing.spans import FinishedSpan

from tandem_runtime.core.errors import HandoffError, RequestError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.control import decode, same_secret
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.messages import ControlCall
from tandem_runtime.engine.spans import JobTimes, job_spans
from tandem_runtime.engine.transfers import JobReport
from tandem_runtime.scheduling import Sequence
from tandem_runtime.transfer.protocol import SendJob

FIRST_RETRY_S = 0.02
LONGEST_RETRY_S = 0.5
UNREACHABLE_RETRIES = 2
UNLISTED_S = 10.0
"""A job this old that its decode pod's probe does not list was given up there before it was announced."""


@dataclass(slots=True)
class _Job:
    job: handoff.PrefillJob
    token: str
    lease: int
    deadline: int | None
    """A timer, as `lease`: the scheduler must not end a sequence whose pages are being sent."""
    times: JobTimes
    phase: Literal["queued", "asking", "sending", "sent"] = "queued"
    retry_s: float = FIRST_RETRY_S
    unreachable: int = 0
    first_page: int = 0
    num_slots: int = 0
    queued_pages: int = 0
    """Pages handed to the sender so far."""
    sender_quiet: bool = True
    """Whether nothing reads the job's pages."""
    ending: str | None = None
    """The outcome, while an ended job waits for its sender to go quiet."""
    error: str | None = None
    cached_tokens: int | None = None
    """Found in the prefix cache; None before the job was admitted."""
    report: JobReport | None = None
    """Of the sender, once it is quiet."""


class PrefillHandoffs:
    """Used on the engine's thread only."""

    def __init__(self, parts: HandoffParts, *, name: str, vocab_size: int, lease_s: float, token_horizon: int) -> None:
        self._parts = parts
        self._name = name
        self._vocab_size = vocab_size
        self._lease_s = lease_s
        self._token_horizon = token_horizon
        self._jobs: dict[str, _Job] = {}
        self.outcomes: Counter[str] = Counter()
        self.expired = 0
        self.pages = 0
        self.bytes = 0

    @property
    def routes(self) -> dict[str, Callable[[ControlCall], None]]:
        return {handoff.PREFILL_PATH: self.on_prefill, handoff.ACK_PATH: self.on_ack, handoff.ALIVE_PATH: self.on_alive}

    @property
    def open_jobs(self) -> int:
        return len(self._jobs)

    def on_prefill(self, call: ControlCall) -> None:
        job = decode(call.body, handoff.PrefillJob)
        field = self._parts.fingerprint.mismatch(job.fingerprint)
        if field is not None:
            self.outcomes["sent/mismatch"] += 1
            ours, theirs = getattr(self._parts.fingerprint, field), getattr(job.fingerprint, field)
            mismatch = handoff.LayoutMismatch(field=field, prefill=str(ours), decode=str(theirs))
            self._parts.control.answer(call, 409, mismatch)
            return
        fault = self._fault(job)
        if fault is not None:
            self._parts.control.answer(call, 400, {"error": fault})
            return
        now = self._parts.clock()
        sequence = Sequence(
            job.job_id,
            job.token_ids,
            SamplingParams(max_tokens=1),
            arrival=now,
            priority=job.priority,
            cache_salt=job.cache_salt,
            mode="prefill_only",
        )
        try:
            self._parts.scheduler.add(sequence)
        except RequestError as error:
            self._parts.control.answer(call, error.status, {"error": str(error)})
            return
        self._jobs[job.job_id] = _Job(
            job=job,
            token=secrets.token_urlsafe(16),
            lease=self._new_lease(job.job_id),
            deadline=self._new_deadline(job),
            times=JobTimes(received=now),
        )
        self._parts.control.answer(call, 202)

    def _fault(self, job: handoff.PrefillJob) -> str | None:
        """What is wrong with a job that no correct decode pod would post; none of it may reach the model."""
        if job.job_id in self._jobs:
            return "job_id: this job was posted before"
        if len(job.token_ids) < 2:
            return "token_ids: a handoff needs at least two tokens"
        if not 0 <= min(job.token_ids) <= max(job.token_ids) < self._vocab_size:
            return f"token_ids: must be at least 0 and below {self._vocab_size}"
        if job.held_tokens % self._parts.fingerprint.page_size or not 0 <= job.held_tokens < len(job.token_ids):
            return f"held_tokens: must be whole pages of {self._parts.fingerprint.page_size} tokens within the prompt"
        if _host(job.decode_url) is None:
            return "decode_url: must be http://HOST:PORT"
        return None

    def announce(self) -> None:
        """Asks D for pages for every job that nears the head of the queue."""
        for job_id in self._parts.scheduler.near_head(self._token_horizon):
            self._ask(self._jobs[job_id])

    def on_progress(self, job_id: str, computed_tokens: int) -> None:
        """The first `computed_tokens` tokens of the job's prompt are in its pages."""
        job = self._jobs.get(job_id)
        if job is None or job.phase != "sending" or job.ending is not None:
            return
        if job.cached_tokens is None:
            job.cached_tokens = computed_tokens
        done = computed_tokens >= len(job.job.token_ids) - 1
        complete = job.first_page + job.num_slots if done else computed_tokens // self._parts.fingerprint.page_size
        ready = complete - job.first_page
        if ready > job.queued_pages:
            pages = self._parts.scheduler.page_table(job_id)[job.first_page + job.queued_pages : job.first_page + ready]
            self._parts.transfers.send(job_id, job.queued_pages, pages)
            job.queued_pages = ready
        if done:
            job.phase = "sent"
            job.times.computed = self._parts.clock()
            self._parts.transfers.finish_send(job_id)

    def on_sent(self, report: JobReport) -> None:
        """Nothing reads the job's pages any more."""
        job = self._jobs[report.job_id]
        error = job.error or report.error
        job.sender_quiet = True
        job.times.sent = self._parts.clock()
        job.report = report
        if error is None:
            self.pages += report.pages
            self.bytes += report.bytes
        else:
            self._post_finish(job, error)
        if job.ending or error:
            self._remove(job, job.ending or "failed", error or "")

    def on_ack(self, call: ControlCall) -> None:
        end = decode(call.body, handoff.JobEnd)
        job = self._jobs.get(end.job_id)
        if job is None or not same_secret(end.token, job.token):
            self._parts.control.answer(call, 404)
            return
        self._parts.control.answer(call, 200)
        self._end(job, "failed" if end.error else "ok", end.error or "acknowledged", tell=False)

    def on_alive(self, call: ControlCall) -> None:
        """Renews the leases of D's jobs; jobs of an earlier incarnation of D are void."""
        probe = decode(call.body, handoff.AliveProbe)
        listed = frozenset(probe.job_ids)
        for job in [job for job in self._jobs.values() if job.job.decode_url == probe.decode_url]:
            if job.job.decode_incarnation != probe.decode_incarnation:
                self._end(job, "void", "the decode pod restarted")
            elif (
                job.job.job_id not in listed
                and job.sender_quiet
                and self._parts.clock() - job.times.received > UNLISTED_S
            ):
                self._end(job, "withdrawn", "the decode pod has given the job up")
        known = [self._jobs[job_id] for job_id in probe.job_ids if job_id in self._jobs]
        for job in known:
            self._parts.timers.cancel(job.lease)
            job.lease = self._new_lease(job.job.job_id)
        unknown = [job_id for job_id in probe.job_ids if job_id not in self._jobs]
        self._parts.control.answer(call, 200, handoff.Alive(incarnation=self._parts.incarnation, unknown_jobs=unknown))

    def _ask(self, job: _Job) -> None:
        if job.job.job_id not in self._jobs:
            return
        job.phase = "asking"
        job.times.announced = job.times.announced or self._parts.clock()
        ask = handoff.ReserveAsk(
            job_id=job.job.job_id,
            prefill_pod=self._name,
            prefill_incarnation=self._parts.incarnation,
            prefill_tensor_parallel=self._parts.transfers.tensor_parallel,
            token=job.token,
        )
        self._parts.control.post(
            job.job.decode_url,
            handoff.RESERVE_PATH,
            ask,
            lambda status, body: self._on_reserve_reply(job, status, body),
        )

    def _on_reserve_reply(self, job: _Job, status: int, body: bytes) -> None:
        if job.job.job_id not in self._jobs or job.phase != "asking":
            return
        if status == 200:
            grant = self._grant(job, body)
            if grant is None:
                self._end(job, "bad_grant", "the decode pod's grant does not fit the job")
            else:
                self._begin(job, grant)
        elif status == 503 or (status == 0 and job.unreachable < UNREACHABLE_RETRIES):
            job.unreachable += status == 0
            self._parts.timers.after(job.retry_s, lambda: self._ask(job))
            job.retry_s = min(2 * job.retry_s, LONGEST_RETRY_S)
        else:
            self._end(job, "withdrawn", f"the decode pod answered {status}")

    def _grant(self, job: _Job, body: bytes) -> handoff.ReserveGrant | None:
        """None unless the grant has a slot for exactly the pages that this job will send."""
        try:
            grant = decode(body, handoff.ReserveGrant)
        except msgspec.DecodeError:
            return None
        page_size = self._parts.fingerprint.page_size
        first = job.job.held_tokens // page_size
        pages = -(-(len(job.job.token_ids) - 1) // page_size)
        ranks = len(grant.data_ports)
        fits = grant.first_page == first and len(grant.slots) == pages - first and ranks
        fits = fits and len(grant.ipc_paths) in (0, ranks)
        return grant if fits and same_secret(grant.token, job.token) else None

    def _begin(self, job: _Job, grant: handoff.ReserveGrant) -> None:
        job.phase = "sending"
        job.times.granted = self._parts.clock()
        job.first_page = grant.first_page
        job.num_slots = len(grant.slots)
        job.sender_quiet = False
        host = _host(job.job.decode_url)
        assert host is not None, "checked when the job came"
        send = SendJob(
            job_id=job.job.job_id,
            data_token=grant.data_token,
            host=host,
            data_ports=grant.data_ports,
            slots=[(slot.page_id, slot.generation) for slot in grant.slots],
            transports=grant.transports,
            ipc_paths=grant.ipc_paths,
        )
        try:
            self._parts.transfers.open_send(send)
        except HandoffError as error:
            job.sender_quiet = True
            self._end(job, error.reason, str(error))
            return
        self._parts.scheduler.open_gate(job.job.job_id)

    def _end(self, job: _Job, outcome: str, message: str, *, tell: bool = True) -> None:
        """Ends a job at any stage; while its sender is at work, `on_sent` completes this.

        `tell`: D hears of it now, rather than when its transfer stalls.
        """
        if job.sender_quiet:
            if tell:
                self._post_finish(job, message)
            self._remove(job, outcome, message)
        elif job.ending is None:
            job.ending = outcome
            if outcome != "ok":
                job.error = message
                self._parts.transfers.abort_send(job.job.job_id, message)

    def _post_finish(self, job: _Job, error: str) -> None:
        end = handoff.JobEnd(job_id=job.job.job_id, token=job.token, error=error)
        self._parts.control.post(job.job.decode_url, handoff.FINISH_PATH, end)

    def _remove(self, job: _Job, outcome: str, message: str) -> None:
        self.outcomes[f"sent/{outcome}"] += 1
        if trace := TraceContext.parse(job.job.traceparent, job.job.tracestate):
            self._parts.on_spans(self._spans(job, trace, outcome, message))
        self._parts.timers.cancel(job.lease)
        self._parts.timers.cancel(job.deadline)
        del self._jobs[job.job.job_id]
        self._parts.scheduler.abort(job.job.job_id)

    def _spans(self, job: _Job, trace: TraceContext, outcome: str, message: str) -> list[FinishedSpan]:
        return job_spans(
            trace,
            job.job.request_id,
            job.times,
            ended=self._parts.clock(),
            computed={
                "tandem.prefill.tokens": len(job.job.token_ids) - 1,
                "tandem.prefill.cached_tokens": job.cached_tokens or 0,
            },
            moved={
                "tandem.handoff.pages": job.report.pages if job.report else 0,
                "tandem.handoff.bytes": job.report.bytes if job.report else 0,
            },
            error=None if outcome == "ok" else (outcome, message),
        )

    def _new_lease(self, job_id: str) -> int:
        return self._parts.timers.after(self._lease_s, lambda: self._on_lease_expired(job_id))

    def _new_deadline(self, job: handoff.PrefillJob) -> int | None:
        if job.deadline_s is None:
            return None
        return self._parts.timers.after(job.deadline_s, lambda: self._on_deadline(job.job_id))

    def _on_deadline(self, job_id: str) -> None:
        if job := self._jobs.get(job_id):
            self._end(job, "deadline", "the deadline passed")

    def _on_lease_expired(self, job_id: str) -> None:
        if job := self._jobs.get(job_id):
            self.expired += 1
            self._end(job, "expired", "the decode pod fell silent")


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme == "http" and parts.port else None
    except ValueError:
        return None
