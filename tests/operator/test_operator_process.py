"""`tandem operator` as a process: kopf's watches, the lease, probes, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.bad_specs import GOOD
from support.bad_specs import service as body_of
from support.fake_cluster import FakeCluster
from support.kube_controllers import run_pods
from tandem_contract import labels
from tandem_operator.cluster.kinds import CHILDREN

pytestmark = pytest.mark.processes
DEADLINE_S = 20.0


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.log.append(line.decode().rstrip())

    async def says(self, pattern: str) -> re.Match[str]:
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [match for line in self.log if (match := re.search(pattern, line))]
            assert found or not self._reader.done(), "\n".join(self.log)
            return bool(found)

        await eventually(look, lambda: "\n".join(self.log))
        return found[0]

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await self.ends()

    async def ends(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self._process.wait()
            await self._reader
        return code


async def eventually(check: Callable[[], bool], explain: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not check():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(explain()) from None


class Rig:
    def __init__(self, cluster: FakeCluster, folder: Path) -> None:
        self.cluster = cluster
        self.kubeconfig = folder / "kubeconfig"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        self.kubeconfig.write_text(json.dumps(config))
        self.started: list[Process] = []

    async def start(self, *flags: str) -> Process:
        argv = ["--engine-image=e:1", "--image=s:1", "--metrics-port=0", "--host=127.0.0.1", *flags]
        made = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tandem_operator", *argv, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.started.append(Process(made))
        return self.started[-1]

    def ready(self, name: str = "chat") -> bool:
        service = self.cluster.get("InferenceService", name) or {}
        conditions = service.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    async def becomes_ready(self, process: Process, name: str = "chat") -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not self.ready(name):
                    await run_pods(self.cluster)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError("\n".join(process.log)) from None


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with FakeCluster() as cluster:
        made = Rig(cluster, tmp_path)
        yield made
        for process in made.started:
            await process.stop(signal.SIGKILL)


async def test_operator_serves_and_leaves_no_trace_of_itself(rig: Rig) -> None:
    process = await rig.start("--resync=1")
    port = (await process.says(r"probes on port (\d+)"))[1]
    await rig.cluster.put(body_of())
    await rig.becomes_ready(process)
    service = rig.cluster.get("InferenceService", "chat")
    assert service is not None
    # kopf could keep its own state here: a finalizer would block deletion while no operator runs.
    assert "finalizers" not in service["metadata"]
    assert "annotations" not in service["metadata"]

    # What the workers still had in hand settles; from then on several resyncs pass without a write.
    async with aiohttp.ClientSession() as session:

        async def reconciles() -> float:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                text = await answer.text()
            return float(re.search(r"tandem_operator_reconcile_seconds_count (\S+)", text)[1])  # type: ignore[index]

        for pause in (2, 3):
            rig.cluster.writes.clear()
            goal = await reconciles() + pause
            async with asyncio.timeout(DEADLINE_S):
                while await reconciles() < goal:  # noqa: ASYNC110 (another process)
                    await asyncio.sleep(0.1)
        assert not rig.cluster.writes
        async with session.get(f"http://127.0.0.1:{port}/livez") as answer:
            assert answer.status == 200, await answer.text()

    await rig.cluster.delete("InferenceService", "chat")
    assert await process.stop() == 0, process.log
    lease = rig.cluster.get("Lease", "tandem-operator")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""


async def test_second_operator_waits_for_the_lease_and_takes_over(rig: Rig) -> None:
    first = await rig.start()
    await first.says("leading as")
    second = await rig.start()
    await second.says("probes on port")
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(first)
    assert not any("leading as" in line for line in second.log)
    assert await first.stop() == 0
    await second.says("leading as")
    await rig.cluster.put({**GOOD, "metadata": {"name": "other", "namespace": "default"}})
    await rig.becomes_ready(second, "other")
    assert await second.stop() == 0, second.log


async def test_service_whose_event_never_came_is_found_by_the_next_round(rig: Rig) -> None:
    process = await rig.start("--resync=1")
    watched = ("watch", "serving.tandem.dev", "inferenceservices")
    await eventually(lambda: watched in rig.cluster.asked, lambda: "\n".join(process.log))
    rig.cluster.deaf.add("inferenceservices")
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(process)


async def test_of_two_namespaces_the_one_that_is_there_is_looked_after(rig: Rig) -> None:
    rig.cluster.forbidden.add("gone")
    process = await rig.start("--resync=1", "--namespace=gone", "--namespace=default")
    await process.says("namespace gone cannot be read")
    watched = ("watch", "serving.tandem.dev", "inferenceservices")
    await eventually(lambda: watched in rig.cluster.asked, lambda: "\n".join(process.log))
    # Found by the round alone.
    rig.cluster.deaf.add("inferenceservices")
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(process)
    port = (await process.says(r"probes on port (\d+)"))[1]
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        unread = re.findall(
            r'tandem_operator_watch_failures_total{kind="(\w+)",reason="Forbidden"}', await answer.text()
        )
    assert set(unread) == {"InferenceService", "Pod", *(kind.kind for kind in CHILDREN)}


async def test_child_that_lost_its_label_gets_it_back_at_once(rig: Rig) -> None:
    """Symptom: a traceback in the log, and nothing done before the next resync."""
    process = await rig.start("--resync=3600")
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(process)

    def child() -> dict[str, Any]:
        return rig.cluster.get("Service", "chat-gateway") or {}

    kept = {key: value for key, value in child()["metadata"]["labels"].items() if key != labels.SERVICE}
    await rig.cluster.put({**child(), "metadata": {**child()["metadata"], "labels": kept}})
    await eventually(lambda: labels.SERVICE in child()["metadata"]["labels"], lambda: "\n".join(process.log))
    assert not any("Traceback" in line for line in process.log), process.log


async def test_operator_waits_for_the_crd(rig: Rig) -> None:
    """Symptom: `helm install` brought the CRD a moment later than the operator, which then never saw a service."""
    rig.cluster.absent.add("inferenceservices")
    process = await rig.start()
    await process.says("waiting for the CRD")
    rig.cluster.absent.discard("inferenceservices")
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(process)


async def test_operator_whose_crd_is_removed_ends_in_good_order(rig: Rig) -> None:
    """Symptom: a traceback, and a lease that kept the next one waiting."""
    process = await rig.start()
    watched = ("watch", "serving.tandem.dev", "inferenceservices")
    await eventually(lambda: watched in rig.cluster.asked, lambda: "\n".join(process.log))
    rig.cluster.absent.add("inferenceservices")
    rig.cluster.hang_up()
    assert await process.ends() == 1
    assert "the watch of inferenceservices has ended: APINotFoundError" in process.log[-1]
    lease = rig.cluster.get("Lease", "tandem-operator")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""


async def test_kubeconfig_that_is_empty_for_a_moment_ends_nothing(rig: Rig) -> None:
    """Symptom: read while it was being written, it ended the operator."""
    process = await rig.start("--resync=3600")
    watched = ("watch", "serving.tandem.dev", "inferenceservices")
    await eventually(lambda: watched in rig.cluster.asked, lambda: "\n".join(process.log))
    whole = rig.kubeconfig.read_text()
    rig.kubeconfig.write_text("")
    rig.cluster.locked_out = True
    rig.cluster.hang_up()
    await process.says("watch of services: ApiError: 401")
    await process.says("credentials cannot be read anew: NoCredentials: kubeconfig: LoginError")
    await process.says("failed temporarily: NoCredentials: kubeconfig: LoginError")
    rig.cluster.locked_out = False
    rig.kubeconfig.write_text(whole)
    await rig.cluster.put(GOOD)
    await rig.becomes_ready(process)
    assert await process.stop() == 0, process.log
    assert not any("Traceback" in line for line in process.log), process.log


@pytest.mark.parametrize(
    ("flag", "text", "field"), [("presets", "Mine: {uri: 'hf://a/b'}", "servedName"), ("platform", "rdma: {}", "rdma")]
)
async def test_unusable_settings_are_named(rig: Rig, tmp_path: Path, flag: str, text: str, field: str) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(text)
    process = await rig.start(f"--{flag}={settings}")
    assert await process.ends() == 1
    assert "settings.yaml" in process.log[0]
    assert any(field in line for line in process.log)
