"""One reconcile of one InferenceService: observe, plan, write, report. Level-triggered: no memory of the last one."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from tandem_operator.api.service import API_VERSION, KIND, InvalidSpec, parse_spec
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.events import events_for
from tandem_operator.cluster.kinds import EVENT, INFERENCE_SERVICE, SECRET
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.cluster.observe import observe
from tandem_operator.cluster.pod_warnings import PodWarnings
from tandem_operator.cluster.write import FormerChild, NameTaken, Writer
from tandem_operator.plan import names
from tandem_operator.plan.children import plan_children
from tandem_operator.plan.context import Installation, Manifest, Service
from tandem_operator.plan.observed import Observed
from tandem_operator.status.facts import Facts
from tandem_operator.status.report import delayed_status, halted_status, status

BUSY_S = 15.0
"""While a service is not in its wanted state it is looked at this often: time and warnings change without a watch."""
REFUSED_S = 30.0
FORMER_S = 3.0
"""While children of a former service are being removed: of their Secret no watch tells."""


@dataclass(frozen=True, slots=True)
class Outcome:
    again: float | None
    """Seconds after which to look again; None: at the next event or resync."""
    ready: str | None
    """Status of the Ready condition, Unknown where children could not be read; None where there is no such service."""


class Reconciler:
    def __init__(
        self, client: Client, mirror: Mirror, installation: Installation, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._mirror = mirror
        self._warnings = PodWarnings(client)
        self._writer = Writer(client, mirror)
        self._installation = installation
        self._clock = clock

    async def reconcile(self, namespace: str, name: str) -> Outcome:
        """Raises `ApiError` and aiohttp's errors; the caller tries again."""
        body, secret = await asyncio.gather(
            self._client.get(INFERENCE_SERVICE, namespace, name),
            self._client.get(SECRET, namespace, names.ticket_key(name)),
        )
        if body is None or "deletionTimestamp" in body["metadata"]:
            return Outcome(None, None)
        if not self._mirror.knows(namespace):
            return Outcome(BUSY_S, "Unknown")
        previous: Manifest = body.get("status", {})
        try:
            new, again = await self._converge(body, secret, previous)
        except InvalidSpec as error:
            new, again = self._halted("InvalidSpec", error, body, previous), None
        if new != previous and not await self._report(body, new, previous):
            again = 0.0
        return Outcome(again, next((c["status"] for c in new["conditions"] if c["type"] == "Ready"), None))

    async def _converge(
        self, body: Manifest, secret: Manifest | None, previous: Manifest
    ) -> tuple[Manifest, float | None]:
        """The status to be, and the seconds after which to look again."""
        meta = body["metadata"]
        service = Service(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta["generation"],
            spec=parse_spec(body),
        )
        seen = await self._observe(service, secret)
        plan = plan_children(service, seen, self._installation, fresh_key=secrets.token_urlsafe(32), now=self._clock())
        refused: tuple[str, Exception] | None = None
        former: FormerChild | None = None
        try:
            wrote = await self._writer.write_children(seen, plan.children, service.uid)
        except NameTaken as error:
            wrote, refused = True, ("NameTaken", error)
        except FormerChild as error:
            wrote, former = True, error
        except ApiError as error:
            if not error.lasts:
                raise
            wrote, refused = True, ("ChildRefused", error)
        if wrote:
            # What was seen before describes other children: Ready must not be said of them.
            seen = await self._observe(service, secret)
        facts = Facts.gather(service, plan, seen)
        new = status(facts, previous, now=self._now(), cluster_domain=self._installation.cluster_domain)
        if refused is not None:
            return self._halted(*refused, body, new), REFUSED_S
        if former is not None:
            return delayed_status("FormerChildren", str(former), new, previous, now=self._now()), FORMER_S
        settled = {c["type"]: c["status"] for c in new["conditions"]}
        idle = settled["Progressing"] == "False" and (service.spec.suspend or settled["Ready"] == "True")
        return new, None if idle else BUSY_S

    def _halted(self, reason: str, error: Exception, body: Manifest, otherwise: Manifest) -> Manifest:
        generation = body["metadata"]["generation"]
        before = body.get("status", {})
        return halted_status(reason, str(error), otherwise, before, generation=generation, now=self._now())

    async def _observe(self, service: Service, secret: Manifest | None) -> Observed:
        where = (service.namespace, service.name, service.uid)
        return await observe(self._mirror, self._warnings, *where, secret, now=self._clock())

    async def _report(self, body: Manifest, new: Manifest, previous: Manifest) -> bool:
        """False where the service changed meanwhile: what is known of it no longer describes it."""
        meta = {key: body["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        report = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "status": new}
        try:
            await self._client.apply(INFERENCE_SERVICE, report, subresource="/status")
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False
        await asyncio.gather(*map(self._tell, events_for(body, new, previous, now=self._now())))
        return True

    async def _tell(self, event: Manifest) -> None:
        # Events are a courtesy: told twice within a second, or refused, they hold up nothing.
        with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await self._client.create(EVENT, event)

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
