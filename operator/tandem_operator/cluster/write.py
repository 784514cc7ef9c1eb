"""Makes the children what the plan says, with no write where they already are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.covers import covers
from tandem_operator.cluster.kinds import BY_NAME, SECRET, STATEFUL_SET
from tandem_operator.cluster.observe import owned
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.observed import Observed

APPLIED = "serving.tandem.dev/applied"
"""Annotation: hash of the manifest as last applied. It also changes when a field is taken out, unseen by `covers`."""


class NameTaken(RuntimeError):
    """A child's name belongs to an object that is not ours."""


async def write_children(client: Client, observed: Observed, desired: Iterable[Manifest], uid: str) -> bool:
    """Whether anything was written. Raises `ApiError`, `NameTaken`; then the next reconcile goes on from there."""
    desired = list(desired)
    wanted = {(child["kind"], child["metadata"]["name"]) for child in desired}
    wrote = False
    # First, since an autoscaler must let go of a set before the planner writes its replicas.
    for key, child in observed.children.items():
        if key not in wanted and key[0] != SECRET.kind and "deletionTimestamp" not in child["metadata"]:
            await client.delete(BY_NAME[key[0]], child)
            wrote = True
    for child in desired:
        current = observed.get(child["kind"], child["metadata"]["name"])
        if child["kind"] == STATEFUL_SET.kind:
            wrote |= await _write_set(client, current, child, uid)
        else:
            wrote |= await _write(client, current, child, uid)
    return wrote


async def _write(client: Client, current: Manifest | None, child: Manifest, uid: str) -> bool:
    child = stamped(child)
    if current is not None and covers(current, child):
        return False
    kind = BY_NAME[child["kind"]]
    if current is None:
        meta = child["metadata"]
        there = await client.get(kind, meta["namespace"], meta["name"])
        if there is not None and not owned(there, uid):
            raise NameTaken(f"{child['kind']} {meta['name']} exists and is not ours: rename it or the InferenceService")
    await client.apply(kind, child)
    return True


async def _write_set(client: Client, current: Manifest | None, child: Manifest, uid: str) -> bool:
    """Replicas are written on their own, so that giving them up to an autoscaler does not reset them to 1."""
    if current is None:
        await _make_set(client, child, uid)
        return True
    replicas = child["spec"].get("replicas")
    shape = {**child, "spec": _without_replicas(child)}
    wrote = not covers(current, shape)
    if wrote:
        current = await client.apply(STATEFUL_SET, shape)
    if replicas is not None and current["spec"].get("replicas") != replicas:
        await client.scale(STATEFUL_SET, current, replicas)
        wrote = True
    return wrote


async def _make_set(client: Client, child: Manifest, uid: str) -> None:
    try:
        await client.create(STATEFUL_SET, child)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        meta = child["metadata"]
        there = await client.get(STATEFUL_SET, meta["namespace"], meta["name"])
        if there is None or not owned(there, uid):
            raise NameTaken(
                f"StatefulSet {meta['name']} exists and is not ours: rename it or the InferenceService"
            ) from error
        # Ours without the labels by which it is found, or made a moment ago. The next look decides on all the rest.
        found_again = {**meta, "annotations": there["metadata"].get("annotations", {})}
        await client.apply(STATEFUL_SET, {**child, "metadata": found_again, "spec": _without_replicas(there)})


def _without_replicas(manifest: Manifest) -> Manifest:
    return {key: value for key, value in manifest["spec"].items() if key != "replicas"}


def stamped(child: Manifest) -> Manifest:
    text = json.dumps(child, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    meta = child["metadata"]
    return {**child, "metadata": {**meta, "annotations": {**meta.get("annotations", {}), APPLIED: digest}}}
