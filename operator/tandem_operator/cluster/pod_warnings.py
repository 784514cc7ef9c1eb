"""Why pods do not start, where only events tell: a Secret or a volume that is missing, a network that is not ready; or
why they are not even made: a quota, a limit range, Pod Security.

The API server has no index of events: each list makes it read all of the namespace. So a namespace is read at most once
in a while, for all of its services, and only while a pod's own status says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.kinds import EVENT
from tandem_operator.plan.context import Manifest

log = logging.getLogger(__name__)

KEEP_S = 15.0
FORGET_S = 10 * KEEP_S
PAGE = 500
MAX_PAGES = 20
SAID_BY_THE_POD = ("FailedScheduling", "BackOff", "Unhealthy", "Preempted")
"""Reasons that say no more than the pod's status, and that are most of a namespace's warnings."""
_SELECTOR = ",".join(("type=Warning", *(f"reason!={reason}" for reason in SAID_BY_THE_POD)))
_KINDS = ("Pod", "StatefulSet")
"""Whose names are not those of one another; others may share them."""

_Warnings = dict[str, tuple[str, str]]
"""When (RFC 3339) and what, by the name of the pod or set: the latest."""


@dataclass(slots=True)
class _Namespace:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of several that ask, one reads."""
    asked: float = float("-inf")
    """When it was last read, or to be read; of the clock."""
    warnings: _Warnings = field(default_factory=dict)


class PodWarnings:
    def __init__(self, client: Client, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._namespaces: dict[str, _Namespace] = {}

    async def of(self, namespace: str, asked: Mapping[str, str]) -> dict[str, str]:
        """By name of a pod or set, the latest warning about it, unless it is older than the time that `asked` names
        (RFC 3339). Where they cannot be read, those of a moment ago: nothing but a message hangs on them."""
        self._forget()
        there = self._namespaces.setdefault(namespace, _Namespace())
        async with there.lock:
            if self._clock() - there.asked >= KEEP_S:
                try:
                    there.warnings = await self._read(namespace)
                except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                    log.warning("events of %s cannot be read: %s: %s", namespace, type(error).__name__, error)
                there.asked = self._clock()
        found = there.warnings
        return {name: found[name][1] for name, since in asked.items() if name in found and found[name][0] >= since}

    def _forget(self) -> None:
        """Namespaces of which nobody asks any more, for the sake of memory."""
        now = self._clock()
        for name, there in list(self._namespaces.items()):
            if now - there.asked >= FORGET_S and not there.lock.locked():
                del self._namespaces[name]

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
