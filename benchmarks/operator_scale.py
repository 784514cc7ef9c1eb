"""How the operator does with many InferenceServices on a real API server, without a pod really running.

    KUBECONFIG=... PYTHONPATH=contract:operator python benchmarks/operator_scale.py [--services 200]

Works in the new namespace `operator-scale` of a cluster that has the CRD and no operator. No node fits the pods; this
program plays their kubelet and says that they are ready. Prints, once every service is Ready: how long reconciles took
until then, after how long a service had all of its children (waiting for its turn included), and what a minute costs in
which nothing changes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from tandem_contract import labels
from tandem_contract import metrics as names
from tandem_operator.api.service import API_VERSION, KIND
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import CHILDREN, INFERENCE_SERVICE, POD

NAMESPACE = "operator-scale"
QUIET_S = 60.0
LOOK_S = 2.0
NOWHERE = {"template": {"nodeSelector": {"tandem.dev/no-node": "fits"}}}
READY = {
    "phase": "Running",
    "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")],
}


async def main(count: int) -> None:
    kubectl("create", "namespace", NAMESPACE)
    operator = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tandem_operator", "--engine-image=none", "--image=none", "--no-leader-elect",
        f"--namespace={NAMESPACE}", "--metrics-port=0", "--host=127.0.0.1", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert operator.stderr is not None
        announced = re.search(rb"probes on port (\d+)", await operator.stderr.readline())
        assert announced, "the operator did not start"
        url = f"http://127.0.0.1:{announced[1].decode()}/metrics"
        drained = asyncio.create_task(operator.stderr.read())
        async with Client(wrote=lambda kind, verb: None) as client, aiohttp.ClientSession() as session:
            began = time.monotonic()
            for index in range(count):
                await client.create(INFERENCE_SERVICE, service(f"service-{index}"))
            print(f"{count} services made in {time.monotonic() - began:.0f} s")
            async with asyncio.TaskGroup() as tasks:
                kubelet = tasks.create_task(play_kubelet(client))
                while await ready_services(client) < count:  # noqa: ASYNC110 (the API server tells in events, too many of them)
                    await asyncio.sleep(LOOK_S)
                kubelet.cancel()
            print(f"all ready after {time.monotonic() - began:.0f} s, {cpu_seconds(operator.pid):.1f} s of CPU")
            await tell_children(client)
            await tell(session, url, operator.pid)
        drained.cancel()
    finally:
        operator.terminate()
        await operator.wait()
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "s3://bucket/model"},
            **dict.fromkeys(("prefill", "decode"), NOWHERE),
            "gateway": {"replicas": 1, **NOWHERE},
        },
    }


async def play_kubelet(client: Client) -> None:
    """Says of every pod that it is ready, as soon as it is made."""
    pods, version = await client.snapshot(POD, NAMESPACE)
    for pod in pods:
        await say_ready(client, pod)
    while True:
        async for event in client.watch(POD, NAMESPACE, version):
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] == "ADDED":
                await say_ready(client, event["object"])


async def say_ready(client: Client, pod: dict[str, Any]) -> None:
    done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    inits = [
        {"name": c["name"], "image": c["image"], "imageID": "", "ready": True, "restartCount": 0, "state": done}
        for c in pod["spec"].get("initContainers", [])
    ]
    meta = {key: pod["metadata"][key] for key in ("name", "namespace")}
    status = READY | {"initContainerStatuses": inits}
    await client.apply(
        POD, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status}, subresource="/status"
    )


async def ready_services(client: Client) -> int:
    services = await client.list(INFERENCE_SERVICE, NAMESPACE)
    conditions = [c for one in services for c in one.get("status", {}).get("conditions", []) if c["type"] == "Ready"]
    return sum(c["status"] == "True" for c in conditions)


async def tell_children(client: Client) -> None:
    """Seconds between the creation of a service and that of its last child, to the second, as the API server noted."""
    made = {one["metadata"]["name"]: created(one) for one in await client.list(INFERENCE_SERVICE, NAMESPACE)}
    last = dict(made)
    for kind in CHILDREN:
        for child in await client.list(kind, NAMESPACE, labelSelector=labels.SERVICE):
            name = child["metadata"]["labels"][labels.SERVICE]
            last[name] = max(last[name], created(child))
    waits = sorted((last[name] - made[name]).total_seconds() for name in made)
    print(f"all children of a service after: p50 {quantile(waits, 0.5):.0f} s, p99 {quantile(waits, 0.99):.0f} s")


def created(thing: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(thing["metadata"]["creationTimestamp"])


def quantile(ordered: list[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1]


async def tell(session: aiohttp.ClientSession, url: str, pid: int) -> None:
    starting = await scrape(session, url)
    print(f"reconciles until then: {starting.count:.0f}, p50 {starting.quantile(0.5)}, p99 {starting.quantile(0.99)}")
    # What the workers still have in hand settles first.
    await asyncio.sleep(QUIET_S)
    before, cpu = await scrape(session, url), cpu_seconds(pid)
    await asyncio.sleep(QUIET_S)
    after = await scrape(session, url)
    quiet = after.since(before)
    print(
        f"a quiet minute: {quiet.count:.0f} reconciles, p99 {quiet.quantile(0.99)}, {quiet.writes:.0f} writes, "
        f"{cpu_seconds(pid) - cpu:.1f} s of CPU, RSS {resident_mib(pid)} MiB"
    )


class Scrape:
    def __init__(self, buckets: dict[float, float], writes: float) -> None:
        self.buckets = buckets
        """Reconciles that took at most so many seconds."""
        self.writes = writes

    @property
    def count(self) -> float:
        return self.buckets[float("inf")]

    def since(self, earlier: Scrape) -> Scrape:
        return Scrape({le: n - earlier.buckets[le] for le, n in self.buckets.items()}, self.writes - earlier.writes)

    def quantile(self, share: float) -> str:
        bound = next((le for le, n in sorted(self.buckets.items()) if n >= share * self.count), float("inf"))
        return f"<= {bound:g} s"


async def scrape(session: aiohttp.ClientSession, url: str) -> Scrape:
    async with session.get(url) as answer:
        text = await answer.text()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    bucket = f"{names.RECONCILE_SECONDS.name}_bucket"
    return Scrape(
        {float(s.labels["le"]): s.value for s in samples if s.name == bucket},
        sum(s.value for s in samples if s.name == names.API_WRITES.name),
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def kubectl(*arguments: str) -> None:
    subprocess.run(["kubectl", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=200)
    asyncio.run(main(parser.parse_args().services))
