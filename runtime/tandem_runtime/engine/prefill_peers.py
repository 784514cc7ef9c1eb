"""The prefill pods that owe this decode pod work: probed, so that one that froze or restarted is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from tandem_contract import handoff

from tandem_runtime.engine.control import decode
from tandem_runtime.engine.handoff_parts import HandoffParts

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.5
PROBES_TO_FAIL = 2


class OnLost(Protocol):
    def __call__(self, job_id: str, *, forgotten: bool) -> None:
        """`forgotten`: the pod lives on, and knows nothing of a job that it took."""


@dataclass(slots=True)
class _Peer:
    incarnation: str
    failures: int = 0
    jobs: dict[str, bool] = field(default_factory=dict)
    """Whether the pod took it, by job; in the order in which they were asked for, and in which they are asked for
    elsewhere once this pod is lost."""


class PrefillPeers:
    """Used on the engine's thread only."""

    def __init__(self, parts: HandoffParts, *, url: str, interval_s: float, on_lost: OnLost) -> None:
        """`url`: this pod's own. `on_lost` is called once a probe for every job that must be asked for elsewhere."""
        self._parts = parts
        self._url = url
        self._interval_s = interval_s
        self._on_lost = on_lost
        self._peers: dict[str, _Peer] = {}
        self._of_job: dict[str, str] = {}
        self._probing = False

    def __len__(self) -> int:
        return len(self._peers)

    def owe(self, url: str, incarnation: str, job_id: str) -> None:
        """The pod at `url` is asked for the job."""
        peer = self._peers.setdefault(url, _Peer(incarnation))
        peer.incarnation = incarnation
        peer.jobs[job_id] = False
        self._of_job[job_id] = url
        if not self._probing:
            self._probing = True
            self._parts.timers.after(self._interval_s, self._probe)

    def took(self, job_id: str) -> None:
        """The pod has the job: before that a probe says nothing about it."""
        self._peers[self._of_job[job_id]].jobs[job_id] = True

    def settle(self, job_id: str) -> None:
        """The job is over."""
        url = self._of_job.pop(job_id)
        peer = self._peers[url]
        del peer.jobs[job_id]
        if not peer.jobs:
            del self._peers[url]

    def _probe(self) -> None:
        for url, peer in self._peers.items():
            taken = [job_id for job_id, taken in peer.jobs.items() if taken]
            probe = handoff.AliveProbe(decode_url=self._url, decode_incarnation=self._parts.incarnation, job_ids=taken)
            self._parts.control.post(
                url, handoff.ALIVE_PATH, probe, self._on_probed(url, peer), timeout_s=PROBE_TIMEOUT_S
            )
        self._probing = bool(self._peers)
        if self._probing:
            self._parts.timers.after(self._interval_s, self._probe)

    def _on_probed(self, url: str, peer: _Peer) -> Callable[[int, bytes], None]:
        probed = frozenset(peer.jobs)

        def on_reply(status: int, body: bytes) -> None:
            if self._peers.get(url) is not peer:
                return
            alive = _alive(status, body)
            if alive is None:
                peer.failures += 1
                lost = probed if peer.failures >= PROBES_TO_FAIL else frozenset()
            else:
                peer.failures = 0
                lost = frozenset(alive.unknown_jobs) if alive.incarnation == peer.incarnation else probed
            forgotten = alive is not None and alive.incarnation == peer.incarnation
            for job_id in [job_id for job_id in peer.jobs if job_id in lost]:
                self._on_lost(job_id, forgotten=forgotten)

        return on_reply


def _alive(status: int, body: bytes) -> handoff.Alive | None:
    try:
        return decode(body, handoff.Alive) if status == 200 else None
    except msgspec.DecodeError:
        return None
