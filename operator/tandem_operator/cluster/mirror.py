"""What the cluster has of ours: listed, then kept up to date by watches that select by our label.

A reconcile reads it instead of the API server. Our own writes enter at once with the server's answer, so no decision
rests on what was there before them. What others do arrives a moment later, as with any controller; scaling or deleting
what has changed since is refused by its resourceVersion.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import aiohttp
from tandem_contract import labels

from tandem_operator.api.service import KIND
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.kinds import CHILDREN, HPA, POD, POD_MONITOR, Kind
from tandem_operator.plan.context import Manifest

log = logging.getLogger(__name__)

RELIST_S = 600.0
"""An event that never came costs so long."""
REDISCOVER_S = 300.0
"""How long the answer to whether the cluster has PodMonitors is believed."""
PAUSE_S = 1.0
MAX_PAUSE_S = 30.0

Changed = Callable[[str, str], None]
"""Called with namespace and name of the InferenceService that something happened to."""
_Key = tuple[str, str, str]
"""Kind, namespace, name."""


class Mirror:
    def __init__(self, client: Client, *, namespaces: Collection[str] = (), changed: Changed = lambda *_: None) -> None:
        """`namespaces`: those to watch; none: all."""
        self._client = client
        self._changed = changed
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._objects: dict[_Key, Manifest] = {}
        self._listed: dict[tuple[Kind, str | None], str] = {}
        """Versions as of `refresh`, from which the watches go on."""
        self._read: set[tuple[Kind, str | None]] = set()
        self._of_service: defaultdict[tuple[str, str], set[_Key]] = defaultdict(set)
        self.pod_monitors = False
        """Whether the cluster has the PodMonitor CRD."""

    async def run(self) -> None:
        """Follows the cluster until cancelled; `refresh` comes first."""
        async with asyncio.TaskGroup() as tasks:
            for kind in (*CHILDREN, POD, POD_MONITOR):
                for scope in self._scopes:
                    tasks.create_task(self._follow(kind, scope))

    async def refresh(self) -> None:
        """Reads all of it anew. Raises `ApiError` and aiohttp's errors. One namespace of several that is gone, or that
        may not be read, holds up no other: `run` tries it again."""
        self.pod_monitors = await self._client.serves(POD_MONITOR)
        kinds = (*CHILDREN, POD, *([POD_MONITOR] if self.pod_monitors else []))
        wanted = [(kind, scope) for kind in kinds for scope in self._scopes]
        answers = await asyncio.gather(*(self._list(kind, scope) for kind, scope in wanted), return_exceptions=True)
        refused: dict[str | None, ApiError] = {}
        for (kind, scope), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, str):
                self._listed[kind, scope] = answer
            elif isinstance(answer, ApiError):
                refused.setdefault(scope, answer)
            else:
                raise answer
        if refused.keys() >= set(self._scopes):
            raise next(iter(refused.values()))
        for scope, error in refused.items():
            log.warning("namespace %s cannot be read: %s", scope, error)

    def knows(self, namespace: str) -> bool:
        """Whether what is there has been read, and still may be: else nothing can be decided about it."""
        scope = None if None in self._scopes else namespace
        return all((kind, scope) in self._read for kind in (*CHILDREN, POD))

    def of_service(self, namespace: str, name: str) -> Iterable[tuple[str, Manifest]]:
        """Kind and object of all that carries the service's label, whoever owns it."""
        for key in self._of_service.get((namespace, name), ()):
            yield key[0], self._objects[key]

    def wrote(self, kind: Kind, answer: Manifest) -> None:
        """`answer`: the object as the API server has it after our write."""
        self._put(kind, answer, tell=False)

    def removed(self, kind: Kind, gone: Manifest) -> None:
        self._drop(_key(kind, gone), gone)

    async def _follow(self, kind: Kind, scope: str | None) -> None:
        pause = PAUSE_S
        while True:
            began = time.monotonic()
            try:
                if kind == POD_MONITOR and not await self._discovered():
                    await asyncio.sleep(REDISCOVER_S)
                    continue
                version = self._listed.pop((kind, scope), None) or await self._list(kind, scope)
                await self._watch(kind, scope, version)
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.warning("watch of %s: %s: %s; again in %.0f s", kind.plural, type(error).__name__, error, pause)
                if isinstance(error, ApiError) and error.status in (401, 403):
                    # What may no longer be read is no longer known: nothing is decided on an old picture.
                    self._read.discard((kind, scope))
            # One that ends at once is opened anew ever more slowly.
            pause = PAUSE_S if time.monotonic() - began > MAX_PAUSE_S else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_S)

    async def _watch(self, kind: Kind, scope: str | None, version: str) -> None:
        """Returns when all is to be listed anew."""
        until = time.monotonic() + RELIST_S
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                async for event in self._client.watch(kind, scope, version, labelSelector=labels.SERVICE):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] == "DELETED":
                        self._drop(_key(kind, event["object"]), event["object"])
                    elif event["type"] != "BOOKMARK":
                        self._put(kind, event["object"], tell=True)
            except ApiError as error:
                if error.status != 410:
                    raise
                # The server no longer knows what happened since then.
                return
            if time.monotonic() - began < PAUSE_S:
                return

    async def _list(self, kind: Kind, scope: str | None) -> str:
        """The resourceVersion that the mirror is at now."""
        items, version = await self._client.snapshot(kind, scope, labelSelector=labels.SERVICE)
        for item in items:
            self._put(kind, item, tell=True)
        there = {_key(kind, item) for item in items}
        for key, known in list(self._objects.items()):
            # What we wrote since is not in the list.
            mine = key[0] == kind.kind and scope in (None, key[1]) and key not in there
            if mine and _version(known) <= int(version):
                self._drop(key, known)
        self._read.add((kind, scope))
        return version

    async def _discovered(self) -> bool:
        self.pod_monitors = await self._client.serves(POD_MONITOR)
        if not self.pod_monitors:
            for key in [key for key in self._objects if key[0] == POD_MONITOR.kind]:
                self._drop(key, self._objects[key])
        return self.pod_monitors

    def _put(self, kind: Kind, found: Manifest, *, tell: bool) -> None:
        key, new = _key(kind, found), _kept(kind, found)
        old = self._objects.get(key)
        if old is not None and _version(new) <= _version(old):
            return
        if old is not None:
            self._forget(key, old)
        self._objects[key] = new
        self._of_service[_service(new)].add(key)
        if tell and (old is None or _unversioned(old) != _unversioned(new)):
            self._tell(*((old, new) if old else (new,)))

    def _drop(self, key: _Key, gone: Manifest) -> None:
        known = self._objects.get(key)
        # Told late, it may be of a former object of this name, or of one that has lost our label and got it again.
        if known is None or _version(known) > _version(gone):
            return
        self._forget(key, known)
        self._tell(known)

    def _forget(self, key: _Key, known: Manifest) -> None:
        del self._objects[key]
        mine = self._of_service[_service(known)]
        mine.discard(key)
        if not mine:
            del self._of_service[_service(known)]

    def _tell(self, *objects: Manifest) -> None:
        told = {_service(thing) for thing in objects}
        for thing in objects:
            # A hand may have put another service's name there.
            owners = thing["metadata"].get("ownerReferences", [])
            told |= {(thing["metadata"]["namespace"], owner["name"]) for owner in owners if owner["kind"] == KIND}
        for namespace, name in told:
            self._changed(namespace, name)


def _key(kind: Kind, thing: Manifest) -> _Key:
    return kind.kind, thing["metadata"]["namespace"], thing["metadata"]["name"]


def _service(thing: Manifest) -> tuple[str, str]:
    return thing["metadata"]["namespace"], thing["metadata"]["labels"][labels.SERVICE]


def _version(thing: Manifest) -> int:
    """Kubernetes promises since 1.35 what always held: of two versions of an object the larger number is the newer."""
    return int(thing["metadata"]["resourceVersion"])


def _unversioned(thing: Manifest) -> Manifest:
    return {**thing, "metadata": {k: v for k, v in thing["metadata"].items() if k != "resourceVersion"}}


def _kept(kind: Kind, found: Manifest) -> Manifest:
    """Without what nobody asks for: it would be most of the memory, and wake reconciles that find nothing to do."""
    meta = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    kept = {**found, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}
    if kind == POD:
        spec = {"nodeName": found["spec"]["nodeName"]} if found.get("spec", {}).get("nodeName") else {}
        kept["spec"] = spec
    if kind.kind == "PodDisruptionBudget":
        kept.pop("status", None)
    if kind == HPA:
        # Its metrics change every 15 s.
        kept["status"] = {"conditions": found.get("status", {}).get("conditions", [])}
    return kept
