"""One reconcile of one InferenceService: observe, plan, write, report. Level-triggered: no memory of the last one."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tandem_operator.api.service import API_VERSION, KIND, InvalidSpec, parse_spec
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.events import events_for
from tandem_operator.cluster.kinds import EVENT, INFERENCE_SERVICE, POD_MONITOR
from tandem_operator.cluster.observe import observe
from tandem_operator.cluster.write import NameTaken, write_children
from tandem_operator.plan.children import plan_children
from tandem_operator.plan.context import Installation, Manifest, Service
from tandem_operator.plan.observed import Observed
from tandem_operator.status.facts import Facts
from tandem_operator.status.report import halted_status, status

BUSY_S = 5.0
"""Pods are not watched; while a service is not in its wanted state it is looked at this often."""
REFUSED_S = 30.0
REDISCOVER_S = 300.0
"""How long the answer to whether the cluster has PodMonitors is believed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    again: float | None
    """Seconds after which to look again; None: at the next event or resync."""
    ready: str | None
    """Status of the Ready condition; None where there is no such service."""


class Reconciler:
    def __init__(self, client: Client, installation: Installation, *, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._installation = installation
        self._clock = clock
        self._pod_monitors = (False, float("-inf"))

    async def reconcile(self, namespace: str, name: str) -> Outcome:
        """Raises `ApiError` and aiohttp's errors; the caller tries again."""
        body = await self._client.get(INFERENCE_SERVICE, namespace, name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return Outcome(None, None)
        previous: Manifest = body.get("status", {})
        try:
            new, again = await self._converge(body, previous)
        except InvalidSpec as error:
            new, again = self._halted("InvalidSpec", error, body, previous), None
        except NameTaken as error:
            new, again = self._halted("NameTaken", error, body, previous), REFUSED_S
        except ApiError as error:
            if not error.lasts:
                raise
            new, again = self._halted("ChildRefused", error, body, previous), REFUSED_S
        if new != previous:
            await self._report(body, new, previous)
        return Outcome(again, next((c["status"] for c in new["conditions"] if c["type"] == "Ready"), None))

    def _halted(self, reason: str, error: Exception, body: Manifest, previous: Manifest) -> Manifest:
        generation = body["metadata"]["generation"]
        return halted_status(reason, str(error), previous, generation=generation, now=self._now())

    async def _converge(self, body: Manifest, previous: Manifest) -> tuple[Manifest, float | None]:
        meta = body["metadata"]
        service = Service(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=meta["uid"],
            generation=meta["generation"],
            spec=parse_spec(body),
        )
        seen = await self._observe(service)
        plan = plan_children(service, seen, self._installation, fresh_key=secrets.token_urlsafe(32), now=self._clock())
        if await write_children(self._client, seen, plan.children, service.uid):
            # What was seen before describes other children: Ready must not be said of them.
            seen = await self._observe(service)
        facts = Facts.gather(service, plan, seen)
        new = status(facts, previous, now=self._now(), cluster_domain=self._installation.cluster_domain)
        settled = {c["type"]: c["status"] for c in new["conditions"]}
        idle = settled["Progressing"] == "False" and (service.spec.suspend or settled["Ready"] == "True")
        return new, None if idle else BUSY_S

    async def _observe(self, service: Service) -> Observed:
        monitors = await self._has_pod_monitors()
        return await observe(self._client, service.namespace, service.name, service.uid, pod_monitors=monitors)

    async def _report(self, body: Manifest, new: Manifest, previous: Manifest) -> None:
        meta = {key: body["metadata"][key] for key in ("name", "namespace")}
        report = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "status": new}
        await self._client.apply(INFERENCE_SERVICE, report, subresource="/status")
        for event in events_for(body, new, previous, now=self._now()):
            # Events are a courtesy: told twice within a second, or refused, they hold up nothing.
            with contextlib.suppress(ApiError):
                await self._client.create(EVENT, event)

    async def _has_pod_monitors(self) -> bool:
        known, at = self._pod_monitors
        if self._clock() - at > REDISCOVER_S:
            known = await self._client.serves(POD_MONITOR)
            self._pod_monitors = (known, self._clock())
        return known

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
