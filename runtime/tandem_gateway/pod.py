"""What the gateway knows of one engine pod: its last status, its health, and what was sent to it since."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from typing import Literal

import aiohttp
from tandem_contract.status import PodStatus
from yarl import URL

from tandem_gateway.deadline import Deadline
from tandem_gateway.endpoints import Endpoint
from tandem_gateway.errors import BadUpstream, PodLeaving
from tandem_gateway.prefix import BLOCK_BYTES, BYTES_PER_TOKEN, SentBlocks
from tandem_gateway.prompt import Prompt
from tandem_gateway.routing import PodView

log = logging.getLogger(__name__)

OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""This gateway's machine can open no more connections, to whichever pod."""
FAILED_POLLS_TO_DOWN = 2
"""One late answer may be a busy pod; after two in a row it takes nothing new."""
SILENT_POLLS_TO_LOST = 4
"""So many timeouts in a row, of a second or more each, are a frozen or lost pod: what waits there goes elsewhere."""
MAX_SENT_BLOCKS = 65536

State = Literal["ready", "not_ready", "draining", "down"]


class Pod:
    """Owned by `Fleet`. Its HTTP session is its own, so that a frozen pod's connections are in nobody's way."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        self.endpoint = endpoint
        self.session = session
        self.url = URL(endpoint.url)
        self.key = self.url.authority
        self.status: PodStatus | None = None
        self.in_flight = 0
        self._sent = SentBlocks(MAX_SENT_BLOCKS)
        self._failed_polls = 0
        self._silent_polls = 0
        self._down = True
        self._unanswered: set[Deadline] = set()
        self._movable: dict[Deadline, Callable[[], bool]] = {}
        self._in_flight_at_poll = 0
        self._tokens_since_poll = 0

    @property
    def name(self) -> str:
        """Its own; no address, and so fit for clients."""
        return self.status.name if self.status is not None else "unknown"

    @property
    def state(self) -> State:
        if self._down or self.status is None:
            return "down"
        if self.endpoint.leaving or self.status.draining:
            return "draining"
        return "ready" if self.status.ready else "not_ready"

    def view(self, prompt: Prompt) -> PodView:
        status = self.status
        if status is None:
            return PodView(self.key, self.endpoint.role, (), "", False, 0.0, 0, 0)
        return PodView(
            key=self.key,
            role=status.role,
            models=status.models,
            fingerprint=status.fingerprint,
            usable=self.state == "ready",
            load=self._prefill_load(status) if status.role == "prefill" else self._decode_load(status),
            waiting=status.waiting,
            known_blocks=self._sent.known(prompt.blocks),
            continuation=status.continuation,
        )

    def snapshot(self) -> dict[str, str | int]:
        status = self.status
        known: dict[str, str | int] = {"name": self.key, "role": self.endpoint.role, "running": 0, "waiting": 0}
        if status is not None:
            known |= {"name": status.name, "role": status.role, "running": status.running, "waiting": status.waiting}
            known |= {"kv_pages_used": status.kv_pages_used, "kv_pages_total": status.kv_pages_total}
        return {"address": self.key, "state": self.state, "in_flight": self.in_flight, **known}

    def sent(self, prompt: Prompt) -> None:
        self._sent.add(prompt.blocks)
        self._tokens_since_poll += prompt.tokens

    def await_answer(self, deadline: Deadline) -> None:
        """Until `answered`, the pod going down ends the attempt, which another pod can then take."""
        self._unanswered.add(deadline)

    def answered(self, deadline: Deadline) -> None:
        self._unanswered.discard(deadline)

    @contextlib.contextmanager
    def movable(self, deadline: Deadline, may_move: Callable[[], bool]) -> Iterator[None]:
        """Around a stream that, while `may_move`, can go on elsewhere: then it ends when the pod is lost or leaves."""
        self._movable[deadline] = may_move
        try:
            yield
        finally:
            del self._movable[deadline]

    def can_take_over(self, status: PodStatus) -> bool:
        """Whether streams of a pod of this status would go on here with the same text, if there is room."""
        own = self.status
        return (
            self.state == "ready"
            and own is not None
            and own.role != "prefill"
            and own.continuation == status.continuation != ""
        )

    def move_streams(self) -> None:
        self._end_movable(PodLeaving("The pod is shutting down."))

    def poll_began(self) -> tuple[int, int]:
        """What the coming status may already count; the mark goes to `polled`."""
        return self.in_flight, self._tokens_since_poll

    def polled(self, status: PodStatus, mark: tuple[int, int]) -> None:
        # A pod that loads its model has no incarnation yet.
        if self.status is not None and self.status.incarnation not in ("", status.incarnation):
            log.info("pod restarted", extra={"fields": {"pod": self.key, "incarnation": status.incarnation}})
            self._sent.clear()
            self._fail_unanswered("restarted")
            self._end_movable(BadUpstream("The pod restarted in the middle of the answer."))
        if self._down:
            log.info("pod is up", extra={"fields": {"pod": self.key, "role": status.role, "name": status.name}})
        self.status = status
        self._down = False
        self._failed_polls = self._silent_polls = 0
        self._in_flight_at_poll = mark[0]
        self._tokens_since_poll -= mark[1]
        cache_bytes = status.kv_pages_total * status.page_size * BYTES_PER_TOKEN
        self._sent.capacity = max(1, min(MAX_SENT_BLOCKS, cache_bytes // BLOCK_BYTES))

    def poll_failed(self, reason: str, *, silent: bool = False) -> None:
        """`silent`: no answer in time; else a bad one, which says at least that the pod is alive."""
        self._failed_polls += 1
        self._silent_polls = self._silent_polls + 1 if silent else 0
        if self._silent_polls >= SILENT_POLLS_TO_LOST:
            self.went_down(reason)
        elif self._failed_polls >= FAILED_POLLS_TO_DOWN:
            self.avoid(reason)

    def avoid(self, reason: str) -> None:
        """Nothing new goes there until the next good poll; what is there may still be answered."""
        if not self._down:
            log.warning("pod is down", extra={"fields": {"pod": self.key, "reason": reason}})
        self._down = True

    def went_down(self, reason: str) -> None:
        """The pod is gone or frozen, so what waits there is lost."""
        self.avoid(reason)
        self._fail_unanswered("went down")
        self._end_movable(BadUpstream("The pod went down in the middle of the answer."))

    def removed(self) -> None:
        self._down = True
        self._fail_unanswered("was removed")

    def _fail_unanswered(self, what: str) -> None:
        for deadline in self._unanswered:
            deadline.expire(BadUpstream(f"The pod {what} before it answered."))

    def _end_movable(self, error: BadUpstream) -> None:
        for deadline, may_move in self._movable.items():
            if may_move():
                deadline.expire(error)

    def _decode_load(self, status: PodStatus) -> float:
        return max(self.in_flight, status.running + status.waiting + self.in_flight - self._in_flight_at_poll)

    def _prefill_load(self, status: PodStatus) -> float:
        return status.waiting_tokens + self._tokens_since_poll


def is_gone(error: aiohttp.ClientConnectorError) -> bool:
    """Whether a connection that could not be made says that nothing listens there any more. It does not where it was
    never tried, for want of an address or of sockets: that must not take the streams of every pod."""
    return not isinstance(error, aiohttp.ClientConnectorDNSError) and error.errno not in OWN_FAULTS
