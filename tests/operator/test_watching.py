"""kopf's watch of InferenceServices over real HTTP: what is refused, another authority, and its end."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import kopf
import pytest
from support.bad_specs import GOOD
from support.certificates import Authority
from support.fake_cluster import FakeCluster
from tandem_operator.watching import WatchEnded, watch

DEADLINE_S = 20.0


class Watcher:
    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.unread: Counter[str] = Counter()
        self._happened = asyncio.Event()

    def changed(self, namespace: str, name: str) -> None:
        self.seen.add(name)
        self._happened.set()

    def failed(self, kind: str, reason: str) -> None:
        assert kind == "InferenceService"
        self.unread[reason] += 1
        self._happened.set()

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not check():
                self._happened.clear()
                await self._happened.wait()


@asynccontextmanager
async def watching(login: Callable[[], kopf.ConnectionInfo]) -> AsyncIterator[Watcher]:
    made = Watcher()
    task = asyncio.create_task(watch(made.changed, ["default"], unread=made.failed, login=login))
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_watch_that_is_refused_is_counted_and_goes_on_once_it_is_not() -> None:
    """Symptom: after a minute without its right to read one namespace, the operator ended, for all of them."""
    async with FakeCluster() as cluster:
        await cluster.put(GOOD)
        cluster.forbidden.add("default")
        async with watching(cluster.login) as watcher:
            await watcher.until(lambda: watcher.unread["Forbidden"] == 2)
            cluster.forbidden.clear()
            cluster.refuse["GET", "inferenceservices"] = 401
            await watcher.until(lambda: "chat" in watcher.seen)
            assert watcher.unread == {"Forbidden": 2, "Unauthorized": 1}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_watch_reads_a_replaced_authority_anew(tmp_path: Path) -> None:
    """Symptom: kopf kept its session with the old authority; changes were found by the resync only, until a restart."""
    authority = Authority(tmp_path)
    async with FakeCluster(authority.tls) as cluster:
        await cluster.put(GOOD)
        async with watching(lambda: authority.login(cluster.url)) as watcher:
            await watcher.until(lambda: "chat" in watcher.seen)
            authority.is_replaced()
            cluster.hang_up()
            await watcher.until(lambda: watcher.unread["ClientConnectorCertificateError"] > 0)
            await cluster.put({**GOOD, "metadata": {"name": "made-meanwhile", "namespace": "default"}})
            authority.is_told()
            await watcher.until(lambda: "made-meanwhile" in watcher.seen)


async def test_end_of_the_watch_is_one_error_of_ours() -> None:
    """The CRD is gone: kopf gives up, and the operator has to start anew and wait for it."""
    async with FakeCluster() as cluster, asyncio.timeout(DEADLINE_S):
        task = asyncio.create_task(watch(lambda namespace, name: None, ["default"], login=cluster.login))
        while ("watch", "inferenceservices") not in cluster.requests:  # noqa: ASYNC110 (kopf tells nobody)
            await asyncio.sleep(0.02)
        cluster.absent.add("inferenceservices")
        cluster.hang_up()
        with pytest.raises(WatchEnded, match="inferenceservices has ended: APINotFoundError"):
            await task
