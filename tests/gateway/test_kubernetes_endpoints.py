"""Following an InferenceService's pods through a fake API server, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway.eventually import eventually
from gateway.fake_kubernetes import FakeKubernetes
from support.certificates import Authority
from tandem_contract import labels
from tandem_contract.reloading import ReloadingFile
from tandem_gateway.endpoints import Endpoint
from tandem_gateway.kubernetes import ApiServer, WatchedEndpoints, endpoint


class Watching:
    def __init__(self) -> None:
        self.updates: list[frozenset[Endpoint]] = []

    async def sees(self, *expected: Endpoint) -> None:
        async def so() -> bool:
            return bool(self.updates) and self.updates[-1] == frozenset(expected)

        await eventually(so)


@contextlib.asynccontextmanager
async def watching(
    server: FakeKubernetes, token: Path, *, watch_seconds: int = 30, api: ApiServer | None = None
) -> AsyncIterator[Watching]:
    api = api or ApiServer(server.url, ReloadingFile(str(token), str.strip), None)
    seen = Watching()
    endpoints = WatchedEndpoints(api, "ns", "svc", watch_seconds=watch_seconds, watch_grace=0.2)
    task = asyncio.create_task(endpoints.run(seen.updates.append))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("token\n")
    return tmp_path / "token"


def at(ip: str, role: str = "decode", *, leaving: bool = False) -> Endpoint:
    return Endpoint(f"http://{ip}:8000", role, leaving)  # type: ignore[arg-type]


async def _watches(server: FakeKubernetes, count: int) -> None:
    async def so() -> bool:
        return len(server.watches) >= count

    await eventually(so)


async def test_pods_are_listed_then_followed(token: Path) -> None:
    async with FakeKubernetes() as server:
        await server.put("d0", "10.0.0.1")
        await server.put("pending", None)
        async with watching(server, token) as seen:
            await seen.sees(at("10.0.0.1"))
            await server.put("p0", "10.0.0.2", "prefill")
            await server.put("pending", "fd00::3")
            await seen.sees(at("10.0.0.1"), at("10.0.0.2", "prefill"), at("[fd00::3]"))
            await server.put("d0", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z")
            await seen.sees(at("10.0.0.1", leaving=True), at("10.0.0.2", "prefill"), at("[fd00::3]"))
            await server.delete("d0")
            await seen.sees(at("10.0.0.2", "prefill"), at("[fd00::3]"))
        assert server.lists == len(server.watches) == 1
        query = server.watches[0]
        assert query["labelSelector"] == f"{labels.SERVICE}=svc,{labels.ROLE} in (prefill,decode,both)"
        assert query["allowWatchBookmarks"] == "true"


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(token: Path) -> None:
    async with FakeKubernetes() as server:
        async with watching(server, token, watch_seconds=1) as seen:
            await seen.sees()
            await _watches(server, 1)
            await server.put("d0", "10.0.0.1")
            await server.bookmark()
            await _watches(server, 2)
            assert int(server.watches[1]["resourceVersion"]) == int(server.watches[0]["resourceVersion"]) + 2
            await server.put("d1", "10.0.0.2")
            await seen.sees(at("10.0.0.1"), at("10.0.0.2"))
        assert server.lists == 1


@pytest.mark.parametrize("as_event", [True, False])
@pytest.mark.parametrize("code", [410, 500, 504])
async def test_a_version_that_is_refused_lists_anew(token: Path, as_event: bool, code: int) -> None:
    """Only 410 did. After etcd was restored from a backup our version is in its future, which is a 504 for ever."""
    async with FakeKubernetes() as server:
        await server.put("d0", "10.0.0.1")
        async with watching(server, token) as seen:
            await seen.sees(at("10.0.0.1"))
            await _watches(server, 1)
            if as_event:
                await server.fail_watches(code)
            else:
                server.refuses = code
                server.cut_connections()
                await _watches(server, 2)
                server.refuses = None
            await server.put("d1", "10.0.0.2")
            await seen.sees(at("10.0.0.1"), at("10.0.0.2"))
        assert server.lists >= 2


async def test_a_cut_or_silent_watch_is_opened_anew_and_keeps_the_endpoints(token: Path) -> None:
    """Watch streams die without a sign behind load balancers; the endpoints then froze in the field's systems."""
    async with FakeKubernetes(mute=True) as server:
        await server.put("d0", "10.0.0.1")
        async with watching(server, token, watch_seconds=1) as seen:
            await _watches(server, 1)
            await server.put("d1", "10.0.0.2")
            server.mute = False
            await seen.sees(at("10.0.0.1"), at("10.0.0.2"))
            server.cut_connections()
            await server.put("d2", "10.0.0.3")
            await seen.sees(at("10.0.0.1"), at("10.0.0.2"), at("10.0.0.3"))
            assert all(at("10.0.0.1") in update for update in seen.updates)


async def test_a_watch_that_ends_at_once_is_opened_anew_ever_more_slowly(token: Path) -> None:
    """A clean end counted as success: where something closed watches, thousands were opened a second."""
    async with FakeKubernetes(ends_at_once=True) as server:
        began = time.monotonic()
        async with watching(server, token) as seen:
            await _watches(server, 4)
            assert time.monotonic() - began >= 0.5 * (0.2 + 0.4 + 0.8)
            server.ends_at_once = False
            await server.put("d0", "10.0.0.1")
            await seen.sees(at("10.0.0.1"))


async def test_an_object_that_makes_no_sense_does_not_end_the_watch(
    token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A TypeError or AttributeError used to end the following for good; the gateway still called itself ready."""
    async with FakeKubernetes() as server:
        async with watching(server, token) as seen:
            await _watches(server, 1)
            await server.put("odd", "10.0.0.9", labels=None)

            async def failed() -> bool:
                return "AttributeError" in caplog.text

            await eventually(failed)
            await server.delete("odd")
            await server.put("d0", "10.0.0.1")
            await seen.sees(at("10.0.0.1"))
    assert "Traceback" in caplog.text


async def test_a_rotated_token_is_read_again(token: Path) -> None:
    async with FakeKubernetes(tokens={"next"}) as server:
        await server.put("d0", "10.0.0.1")
        async with watching(server, token) as seen:
            await asyncio.to_thread(token.write_text, "next\n")
            await seen.sees(at("10.0.0.1"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_a_replaced_authority_is_read_again(
    token: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Symptom: after the cluster's CA was replaced a gateway knew no new pod until it was restarted."""
    authority = Authority(tmp_path)
    async with FakeKubernetes(tls=authority.tls) as server:
        port = server.url.rpartition(":")[2]
        where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        async with watching(server, token, api=ApiServer.in_cluster(where, str(tmp_path))) as seen:
            await _watches(server, 1)
            await server.put("d0", "10.0.0.1")
            await seen.sees(at("10.0.0.1"))
            authority.is_replaced()
            server.cut_connections()

            async def refused() -> bool:
                return "ClientConnectorCertificateError" in caplog.text

            await eventually(refused)
            await server.put("d1", "10.0.0.2")
            authority.is_told()
            await seen.sees(at("10.0.0.1"), at("10.0.0.2"))


def test_pods_that_have_ended_or_are_not_ours_are_no_endpoints() -> None:
    meta = {"labels": {labels.ROLE: "decode"}}
    assert endpoint({"metadata": meta, "status": {"podIP": "10.0.0.1", "phase": "Running"}}) == at("10.0.0.1")
    assert endpoint({"metadata": meta, "status": {"podIP": "10.0.0.1", "phase": "Failed"}}) is None
    assert endpoint({"metadata": {"labels": {labels.ROLE: "gateway"}}, "status": {"podIP": "10.0.0.1"}}) is None
    assert endpoint({"metadata": {}, "status": {"podIP": "10.0.0.1"}}) is None


def test_in_cluster_needs_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KUBERNETES_SERVICE_HOST"):
        ApiServer.in_cluster({})
    with pytest.raises(OSError):
        ApiServer.in_cluster({"KUBERNETES_SERVICE_HOST": "x", "KUBERNETES_SERVICE_PORT": "1"}, str(tmp_path))
