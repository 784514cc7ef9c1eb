"""Leader election by a Lease (coordination.k8s.io): at most one operator writes.

Times are compared by how long this process has seen the lease unchanged, as client-go does, so clocks may differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp

from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.kinds import LEASE
from tandem_operator.plan.context import Manifest

log = logging.getLogger(__name__)

DURATION_S = 15.0
"""A lease that was not renewed for so long may be taken."""
RENEW_S = 3.0
ATTEMPT_S = 2.0
GIVE_UP_S = 10.0
"""A leader that could not renew for so long stops, before anyone else may take the lease."""


class LeaseLost(RuntimeError):
    """Another operator may lead by now."""


class Lease:
    def __init__(
        self, client: Client, namespace: str, name: str, identity: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._seen: tuple[str, float] = ("", clock())
        """Holder's last renewal and when we first saw it."""

    async def acquire(self) -> None:
        """Returns once this process is the leader."""
        while True:
            if await self.attempt():
                return
            await asyncio.sleep(RENEW_S)

    async def hold(self) -> None:
        """Renews until leadership is lost. Raises `LeaseLost`."""
        renewed = self._clock()
        while self._clock() - renewed < GIVE_UP_S:
            await asyncio.sleep(RENEW_S)
            began = self._clock()
            if await self.attempt():
                renewed = began
        raise LeaseLost(f"the lease could not be renewed for {GIVE_UP_S:.0f} s")

    async def attempt(self) -> bool:
        """Whether the lease is ours now."""
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await self._attempt()
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("lease %s/%s: %s: %s", self._namespace, self._name, type(error).__name__, error)
            return False

    async def release(self) -> None:
        """Lets the next operator start at once."""
        lease = await self._client.get(LEASE, self._namespace, self._name)
        if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            await self._client.replace(LEASE, lease)

    async def _attempt(self) -> bool:
        lease = await self._client.get(LEASE, self._namespace, self._name)
        if lease is None:
            meta = {"name": self._name, "namespace": self._namespace}
            made = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": meta, "spec": self._spec({})}
            await self._client.create(LEASE, made)
            return True
        spec = lease.get("spec", {})
        holder, renewal = spec.get("holderIdentity", ""), f"{spec.get('holderIdentity')}@{spec.get('renewTime')}"
        if renewal != self._seen[0]:
            self._seen = (renewal, self._clock())
        if holder not in ("", self._identity) and self._clock() - self._seen[1] < DURATION_S:
            return False
        # The resourceVersion in it makes the server refuse all but the first of several takers.
        await self._client.replace(LEASE, {**lease, "spec": self._spec(spec)})
        return True

    def _spec(self, before: Manifest) -> Manifest:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        mine = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not mine),
        }
