"""Where the pods are: the seam between the fleet and whatever knows the pods' addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tandem_contract.status import Role
from yarl import URL


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    """API URL, such as `http://10.0.0.7:8000`; identifies the pod."""
    role: Role
    """Expected; once the pod answers, its own status counts."""
    leaving: bool = False
    """Being deleted: finishes what it has, takes nothing new."""


def by_address(endpoints: Iterable[Endpoint]) -> dict[str, Endpoint]:
    """One for each host and port. Of several, as when a pod has got the address of one that is not quite gone, the one
    that stays counts."""
    staying_last = sorted(endpoints, key=lambda endpoint: (not endpoint.leaving, endpoint.url, endpoint.role))
    return {URL(endpoint.url).authority: endpoint for endpoint in staying_last}


Update = Callable[[frozenset[Endpoint]], None]


class Endpoints(Protocol):
    async def run(self, update: Update) -> None:
        """Calls `update` with all endpoints, at first and after each change, until cancelled."""


class StaticEndpoints:
    def __init__(self, decode: tuple[str, ...], prefill: tuple[str, ...]) -> None:
        self._endpoints = frozenset(
            [Endpoint(url.rstrip("/"), "decode") for url in decode]
            + [Endpoint(url.rstrip("/"), "prefill") for url in prefill]
        )

    async def run(self, update: Update) -> None:
        update(self._endpoints)
        await asyncio.Event().wait()
