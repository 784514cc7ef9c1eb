"""Why pods do not start, where only events tell: a Secret or a volume that is missing, a network that is not ready.

The API server has no index of events: each list makes it read all of the namespace. So a namespace is read at most once
in a while, for all of its services, and only while a pod's own status says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection

from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import EVENT
from tandem_operator.plan.context import Manifest

log = logging.getLogger(__name__)

KEEP_S = 15.0
PAGE = 500
MAX_PAGES = 20
SAID_BY_THE_POD = ("FailedScheduling", "BackOff", "Unhealthy", "Preempted")
"""Reasons that say no more than the pod's status, and that are most of a namespace's warnings."""
_SELECTOR = ",".join(("type=Warning", "involvedObject.kind=Pod", *(f"reason!={reason}" for reason in SAID_BY_THE_POD)))

_Warnings = dict[str, tuple[str, str]]
"""When (RFC 3339) and what, by the pod's name: the latest."""


class PodWarnings:
    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: dict[str, tuple[float, _Warnings]] = {}

    async def of(self, namespace: str, pods: Collection[str]) -> dict[str, str]:
        """The latest warning about each of `pods` that has one. Raises `ApiError` and aiohttp's errors."""
        async with self._reading[namespace]:
            at, found = self._known.get(namespace, (float("-inf"), {}))
            if self._clock() - at >= KEEP_S:
                found = await self._read(namespace)
                self._known[namespace] = self._clock(), found
        return {pod: found[pod][1] for pod in pods if pod in found}

    async def _read(self, namespace: str) -> _Warnings:
        latest: _Warnings = {}
        pages = 0
        async for events in self._client.pages(EVENT, namespace, PAGE, fieldSelector=_SELECTOR):
            for event in events:
                pod, said = event["involvedObject"].get("name", ""), (_when(event), event.get("message", ""))
                latest[pod] = max(said, latest.get(pod, said))
            pages += 1
            if pages == MAX_PAGES:
                log.warning("%s: more than %d warnings about pods: not all are read", namespace, PAGE * MAX_PAGES)
                break
        return latest


def _when(event: Manifest) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or ""
