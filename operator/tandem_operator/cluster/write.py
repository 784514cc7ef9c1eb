"""Makes the children what the plan says, with no write where they already are."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Iterable

from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.covers import covers
from tandem_operator.cluster.kinds import BY_NAME, DEPLOYMENT, HPA, SECRET, STATEFUL_SET, Kind
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.cluster.observe import owned
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.observed import Observed

APPLIED = "serving.tandem.dev/applied"
"""Annotation: hash of the manifest as last applied. It also changes when a field is taken out, unseen by `covers`."""


class NameTaken(RuntimeError):
    """A child's name belongs to an object that is not ours."""


class FormerChild(RuntimeError):
    """A child's name belongs to a child of a service that had this name before and is gone: it soon will be, too."""


class Writer:
    def __init__(self, client: Client, mirror: Mirror) -> None:
        self._client = client
        self._mirror = mirror

    async def write_children(self, observed: Observed, desired: Iterable[Manifest], uid: str) -> bool:
        """Whether anything was written. Raises `ApiError`, `NameTaken`, `FormerChild`; then the next reconcile goes
        on from there."""
        desired = list(desired)
        wanted = {(child["kind"], child["metadata"]["name"]) for child in desired}
        # First, since an autoscaler must let go of a set before the planner writes its replicas.
        gone = [
            self._delete(BY_NAME[kind], child)
            for (kind, name), child in observed.children.items()
            if (kind, name) not in wanted and kind != SECRET.kind and "deletionTimestamp" not in child["metadata"]
        ]
        wrote = await _all(gone)
        for stage in _STAGES:
            changes = []
            for child in desired:
                if _stage(child["kind"]) == stage:
                    current = observed.get(child["kind"], child["metadata"]["name"])
                    write = {STATEFUL_SET.kind: self._write_set, SECRET.kind: self._write_keys}.get(child["kind"])
                    changes.append((write or self._write)(current, child, uid))
            wrote |= await _all(changes)
        return wrote

    async def _delete(self, kind: Kind, child: Manifest) -> bool:
        await self._client.delete(kind, child)
        self._mirror.removed(kind, child)
        return True

    async def _write(self, current: Manifest | None, child: Manifest, uid: str) -> bool:
        child = stamped(child)
        if current is not None and covers(current, child):
            return False
        kind, meta = BY_NAME[child["kind"]], child["metadata"]
        if current is None:
            try:
                self._noted(kind, await self._client.create(kind, child))
                return True
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
        # The mirror keeps no record of who wrote which field.
        there = await self._client.get(kind, meta["namespace"], meta["name"])
        if there is not None:
            if not owned(there, uid):
                raise _taken(child, there)
            await self._client.claim(kind, there)
        await self._apply(kind, child)
        return True

    async def _write_keys(self, current: Manifest | None, child: Manifest, uid: str) -> bool:
        """Only over the Secret that they follow from: pods may know the keys of any other already."""
        child, meta = stamped(child), child["metadata"]
        if current is None:
            try:
                await self._client.create(SECRET, child)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                there = await self._client.get(SECRET, meta["namespace"], meta["name"])
                if there is not None and not owned(there, uid):
                    raise _taken(child, there) from error
            return True
        if covers(current, child):
            return False
        seen = (await self._client.claim(SECRET, current))["metadata"]["resourceVersion"]
        await self._client.apply(SECRET, {**child, "metadata": {**child["metadata"], "resourceVersion": seen}})
        return True

    async def _write_set(self, current: Manifest | None, child: Manifest, uid: str) -> bool:
        """Replicas are written on their own, so that giving them up to an autoscaler does not reset them to 1."""
        if current is None:
            await self._make_set(child, uid)
            return True
        replicas = child["spec"].get("replicas")
        shape = {**child, "spec": _without_replicas(child)}
        wrote = not covers(current, shape)
        if wrote:
            # Deleted meanwhile, it is not made anew: without replicas it would come with one pod.
            meta = {**shape["metadata"], "uid": current["metadata"]["uid"]}
            current = await self._apply(STATEFUL_SET, {**shape, "metadata": meta})
        if replicas is not None and current["spec"].get("replicas") != replicas:
            self._noted(STATEFUL_SET, await self._client.scale(STATEFUL_SET, current, replicas))
            wrote = True
        return wrote

    async def _make_set(self, child: Manifest, uid: str) -> None:
        try:
            self._noted(STATEFUL_SET, await self._client.create(STATEFUL_SET, child))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            meta = child["metadata"]
            there = await self._client.get(STATEFUL_SET, meta["namespace"], meta["name"])
            if there is None:
                raise _former(child) from error
            if not owned(there, uid):
                raise _taken(child, there) from error
            # Ours without the labels by which it is found, or made a moment ago. The next look decides on all the rest.
            found_again = {**meta, "annotations": there["metadata"].get("annotations", {})}
            await self._apply(STATEFUL_SET, {**child, "metadata": found_again, "spec": _without_replicas(there)})

    async def _apply(self, kind: Kind, child: Manifest) -> Manifest:
        return self._noted(kind, await self._client.apply(kind, child))

    def _noted(self, kind: Kind, answer: Manifest) -> Manifest:
        self._mirror.wrote(kind, answer)
        return answer


async def _all(writes: Iterable[Coroutine[None, None, bool]]) -> bool:
    """Whether any wrote. All have ended when it returns or raises the first's error."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return True in results


def _stage(kind: str) -> int:
    """Pods find what they need, and an autoscaler its set: what is of one stage is written at the same time."""
    return {STATEFUL_SET.kind: 1, DEPLOYMENT.kind: 1, HPA.kind: 2}.get(kind, 0)


_STAGES = (0, 1, 2)


def _taken(child: Manifest, there: Manifest) -> NameTaken | FormerChild:
    (mine,) = child["metadata"]["ownerReferences"]
    same = ("apiVersion", "kind", "name", "controller")
    # Of two services of one name one is gone.
    if any(all(owner.get(key) == mine[key] for key in same) for owner in there["metadata"].get("ownerReferences", [])):
        return _former(child)
    return NameTaken(f"{_called(child)} exists and is not ours: rename it or the InferenceService")


def _former(child: Manifest) -> FormerChild:
    (mine,) = child["metadata"]["ownerReferences"]
    former = f"a former {mine['kind']} {mine['name']}"
    return FormerChild(f"{_called(child)} still belongs to {former}: waiting for Kubernetes to remove its children")


def _called(child: Manifest) -> str:
    return f"{child['kind']} {child['metadata']['name']}"


def _without_replicas(manifest: Manifest) -> Manifest:
    return {key: value for key, value in manifest["spec"].items() if key != "replicas"}


def stamped(child: Manifest) -> Manifest:
    text = json.dumps(child, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    meta = child["metadata"]
    return {**child, "metadata": {**meta, "annotations": {**meta.get("annotations", {}), APPLIED: digest}}}
