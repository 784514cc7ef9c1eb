"""Why pods do not start, where only events tell: a Secret or a volume that is missing, a network that is not ready; or
why they are not even made: a quota, a limit range, Pod Security.

The API server has no index of events: each list makes it read all of the namespace. So a namespace is read at most once
in a while, for all of its services, and only while a pod's own status says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import EVENT
from tandem_operator.plan.context import Manifest

log = logging.getLogger(__name__)

KEEP_S = 15.0
PAGE = 500
MAX_PAGES = 20
SAID_BY_THE_POD = ("FailedScheduling", "BackOff", "Unhealthy", "Preempted")
"""Reasons that say no more than the pod's status, and that are most of a namespace's warnings."""
_SELECTOR = ",".join(("type=Warning", *(f"reason!={reason}" for reason in SAID_BY_THE_POD)))
_KINDS = ("Pod", "StatefulSet")
"""Whose names are not those of one another; others may share them."""

_Warnings = dict[str, tuple[str, str]]
"""When (RFC 3339) and what, by the name of the pod or set: the latest."""


class PodWarnings:
    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known: dict[str, tuple[float, _Warnings]] = {}

    async def of(self, namespace: str, asked: Mapping[str, str]) -> dict[str, str]:
        """By name of a pod or set, the latest warning about it, unless it is older than the time that `asked` names
        (RFC 3339). Raises `ApiError` and aiohttp's errors."""
        async with self._reading[namespace]:
            at, found = self._known.get(namespace, (float("-inf"), {}))
            if self._clock() - at >= KEEP_S:
                found = await self._read(namespace)
                self._known[namespace] = self._clock(), found
        return {name: found[name][1] for name, since in asked.items() if name in found and found[name][0] >= since}

    async def _read(self, namespace: str) -> _Warnings:
        latest: _Warnings = {}
        pages = 0
        async for events in self._client.pages(EVENT, namespace, PAGE, fieldSelector=_SELECTOR):
            for event in events:
                about, said = event["involvedObject"], (_when(event), event.get("message", ""))
                if about.get("kind") in _KINDS:
                    latest[about["name"]] = max(said, latest.get(about["name"], said))
            pages += 1
            if pages == MAX_PAGES:
                log.warning("%s: more than %d warnings about pods: not all are read", namespace, PAGE * MAX_PAGES)
                break
        return latest


def _when(event: Manifest) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or ""
