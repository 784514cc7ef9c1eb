"""Reads everything a reconcile decides on. Lists by label; the server's state, no cache, so it cannot be stale."""

from __future__ import annotations

import asyncio

from tandem_contract import labels

from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import EVENT, LISTED, POD, POD_MONITOR, SECRET, Kind
from tandem_operator.plan import names
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.observed import ChildKey, Observed


async def observe(client: Client, namespace: str, name: str, uid: str, *, pod_monitors: bool) -> Observed:
    kinds = (*LISTED, POD_MONITOR) if pod_monitors else LISTED
    selector = f"{labels.SERVICE}={name}"

    async def children(kind: Kind) -> list[tuple[ChildKey, Manifest]]:
        found = await client.list(kind, namespace, labelSelector=selector)
        # The items of a list carry neither kind nor apiVersion.
        typed = [{**item, "apiVersion": kind.api_version, "kind": kind.kind} for item in found]
        return [((kind.kind, item["metadata"]["name"]), item) for item in typed if owned(item, uid)]

    secret_name = names.ticket_key(name)
    lists, secret, pods = await asyncio.gather(
        asyncio.gather(*map(children, kinds)),
        client.get(SECRET, namespace, secret_name),
        client.list(POD, namespace, labelSelector=selector),
    )
    by_key = {key: child for found in lists for key, child in found}
    if secret is not None and owned(secret, uid):
        by_key[SECRET.kind, secret_name] = secret
    return Observed(by_key, pods, pod_monitors, await _warnings(client, namespace, pods))


def owned(child: Manifest, uid: str) -> bool:
    owners = child["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == uid and owner.get("controller") for owner in owners)


async def _warnings(client: Client, namespace: str, pods: list[Manifest]) -> dict[str, str]:
    """Asked only while a pod waits for its first container: nothing but events explains that."""
    waiting = {pod["metadata"]["name"] for pod in pods if pod.get("status", {}).get("phase") == "Pending"}
    if not waiting:
        return {}
    events = await client.list(EVENT, namespace, fieldSelector="type=Warning,involvedObject.kind=Pod", limit="500")
    events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return {
        event["involvedObject"]["name"]: event.get("message", "")
        for event in events
        if event["involvedObject"].get("name") in waiting
    }
