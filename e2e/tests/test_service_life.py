"""One service from its first pod to its last, under traffic without pause. The tests are a story: they run in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support import models, pods, store
from support.release import LATER_COLUMN, RESYNC_S, Release, earlier_chart
from support.services import (
    ENGINE_FLAGS,
    HOSTNAME,
    KEY,
    SERVED_NAME,
    SLOW_S,
    SMALL,
    Service,
    eventually,
    manifest,
    secrets,
)
from support.traffic import Traffic
from tandem_cluster.kubectl import Kubectl
from tandem_contract import labels, metrics

pytestmark = pytest.mark.timeout(600)
IMAGE_2 = "localhost/tandem-e2e/runtime:2"
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())"
STATUS = """\
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1] + "/v1/models", headers={"Authorization": "Bearer " + sys.argv[2]})
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    kubectl = Kubectl(kubeconfig, f"e2e-life-{uuid4().hex[:6]}")
    kubectl("create", "namespace", kubectl.namespace)
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture(scope="module")
def earlier(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Of a chart before this one, as that of a user who upgrades."""
    release.install(earlier_chart(tmp_path_factory.mktemp("earlier")))
    return release


@pytest.fixture(scope="module")
def spared(kubectl: Kubectl) -> str:
    """The node that is never taken down."""
    return min(str(node["metadata"]["name"]) for node in kubectl.get("nodes")["items"])


@pytest.fixture(scope="module")
def bystander(earlier: Release, model_store: None, spared: str) -> Iterator[Service]:
    """A service in another namespace that nobody touches."""
    kubectl = Kubectl(earlier.kubectl.kubeconfig, f"e2e-bystander-{uuid4().hex[:6]}")
    kubectl("create", "namespace", kubectl.namespace)
    there = {"template": SMALL | {"nodeSelector": {HOSTNAME: spared}}}
    alone = manifest("other", prefill={"replicas": 0}, decode=there, gateway={"replicas": 1, **there})
    kubectl.apply(*secrets(), alone)
    yield Service(kubectl, "other")
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture(scope="module")
def service(kubectl: Kubectl, earlier: Release, model_store: None) -> Service:
    kubectl.apply(*secrets(), manifest("chat"))
    return Service(kubectl, "chat")


@pytest.fixture(scope="module")
def traffic(service: Service, spared: str, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = models.build_served_model(tmp_path_factory.mktemp("tiny"))
    cases = models.cases(folder, SERVED_NAME)
    service.becomes_ready()
    made = Traffic(service.kubectl)
    made.start(service, cases, spared)
    return made


@pytest.fixture(scope="module")
def untouched(bystander: Service) -> dict[str, tuple[str, int]]:
    bystander.becomes_ready()
    return bystander.identities()


@pytest.fixture
def moment() -> float:
    return time.time()


def metric(traffic: Traffic, pod: dict[str, object], name: str, **wanted: str) -> float:
    """Sum over the samples of one pod."""
    text = traffic.run("python", "-c", GET, f"http://{pod['status']['podIP']}:8080/metrics")  # type: ignore[index]
    return pods.sample(text, name, **wanted)


def test_prefill_and_decode_answer_from_different_pods(
    service: Service, untouched: dict[str, tuple[str, int]], traffic: Traffic
) -> None:
    assert not traffic.failures()
    (prefill,), (decode,) = service.pods("prefill"), service.pods("decode")
    assert metric(traffic, decode, metrics.REQUESTS.name) > 0
    assert metric(traffic, prefill, metrics.REQUESTS.name) == 0
    assert metric(traffic, prefill, metrics.HANDOFF_PAGES.name, side="sent") > 0
    assert metric(traffic, decode, metrics.HANDOFF_PAGES.name, side="received") > 0
    # The init container brought the model from the store.
    assert "tiny-qwen3" in service.kubectl("logs", prefill["metadata"]["name"], "--container=fetch")


@pytest.mark.parametrize(("key", "status"), [(KEY, "200"), ("sk-wrong", "401")])
def test_only_a_right_key_is_let_in(service: Service, traffic: Traffic, key: str, status: str) -> None:
    assert traffic.run("python", "-c", STATUS, service.url, key).strip() == status


def test_pods_run_locked_down(service: Service) -> None:
    (decode,) = service.pods("decode")
    inside = ("exec", decode["metadata"]["name"], "--container=engine", "--")
    assert service.kubectl(*inside, "id", "-u").strip() == "65532"
    assert service.kubectl(*inside, "sh", "-c", "touch /opt/x 2>&1 || true").strip().endswith("Read-only file system")
    assert (
        service.kubectl(*inside, "sh", "-c", "ls /var/run/secrets 2>&1 || true")
        .strip()
        .endswith("No such file or directory")
    )


def test_scaling_decode_up_and_down_loses_nothing(service: Service, traffic: Traffic, moment: float) -> None:
    others = service.identities("prefill") | service.identities("gateway")
    (first,) = service.identities("decode").items()
    for replicas in (3, 1):
        service.patch(decode={"replicas": replicas})
        eventually(
            lambda replicas=replicas: (
                service.condition("Ready")["status"] == "True" and len(service.pods("decode")) == replicas
            ),
            service.tell,
            SLOW_S,
        )
    assert traffic.failures(moment) == []
    assert service.identities("prefill") | service.identities("gateway") == others
    assert list(service.identities("decode").items()) == [first]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"engine": {"extraArgs": [*ENGINE_FLAGS, "--max-num-batched-tokens=512"]}}, id="flags"),
        pytest.param({role: {"template": {"image": IMAGE_2}} for role in ("prefill", "decode")}, id="image"),
    ],
)
def test_a_change_rolls_out(service: Service, traffic: Traffic, moment: float, change: dict[str, object]) -> None:
    (before,) = service.revisions()
    service.patch(**change)
    service.becomes_ready()
    (after,) = service.revisions()
    assert after != before
    assert traffic.failures(moment) == []


def test_a_bad_revision_takes_no_traffic_and_a_revert_repairs_it(
    service: Service, traffic: Traffic, moment: float
) -> None:
    good, serving = service.kubectl.get("infsvc", service.name)["spec"]["model"]["uri"], service.identities()
    service.patch(model={"uri": f"s3://{store.BUCKET}/nowhere"})
    eventually(lambda: service.condition("ModelReady")["reason"] == "ModelDownloadFailed", service.tell, SLOW_S)
    assert f"nothing under s3://{store.BUCKET}/nowhere/" in service.condition("ModelReady")["message"]
    assert service.condition("Ready")["status"] == "False"

    service.patch(model={"uri": good})
    service.becomes_ready()
    assert service.identities() == serving
    assert traffic.failures(moment) == []


def test_killed_processes_fail_only_what_they_were_answering(
    service: Service, traffic: Traffic, throwaway: Callable[..., None]
) -> None:
    service.patch(decode={"replicas": 2})
    service.becomes_ready()
    for role in ("prefill", "decode", "gateway"):
        victim = service.pods(role)[0]
        moment = time.time()
        pods.kill(victim)
        name = victim["metadata"]["name"]
        eventually(lambda name=name: pods.restarts(service.kubectl, name) > 0, service.tell, 60)
        service.becomes_ready()
        cut_off = traffic.failures(moment)
        # A prefill pod holds no answer; of the others only answers that were being written are lost.
        assert all(request.began < moment + 1 for request in cut_off), (role, cut_off)
        assert len(cut_off) <= (0 if role == "prefill" else 2), (role, cut_off)


def test_a_rollout_outlives_its_operator_and_the_api_server(
    service: Service, release: Release, traffic: Traffic, moment: float, throwaway: Callable[..., None]
) -> None:
    (before,) = service.revisions()
    service.patch(decode={"replicas": 1}, engine={"extraArgs": [*ENGINE_FLAGS, "--max-num-batched-tokens=256"]})
    for kills in (1, 2):
        (operator,) = release.operator_pods()
        pods.kill(release.kubectl.get("pod", operator))
        eventually(
            lambda operator=operator, kills=kills: pods.restarts(release.kubectl, operator) >= kills, service.tell, 60
        )
    throwaway("restart", "kube-apiserver")
    service.becomes_ready()
    assert before not in service.revisions()
    assert traffic.failures(moment) == []


def test_a_lost_node_costs_only_what_was_under_way(
    service: Service, traffic: Traffic, spared: str, throwaway: Callable[..., None]
) -> None:
    service.patch(prefill={"replicas": 2}, decode={"replicas": 2})
    service.becomes_ready()
    nodes = {node["metadata"]["name"] for node in service.kubectl.get("nodes")["items"]}
    (lost,) = nodes - {spared}
    for role in ("prefill", "decode", "gateway"):
        assert {pod["spec"]["nodeName"] for pod in service.pods(role)} == nodes
    moment = time.time()
    throwaway("node-down", lost)
    service.kubectl("wait", f"node/{lost}", "--for=condition=Ready=Unknown", "--timeout=90s")
    eventually(lambda: service.condition("Ready")["status"] == "False", service.tell, 60)
    settled = time.time()
    assert traffic.failures(settled) == []
    under_way = [request for request in traffic.requests(moment) if request.problem is not None]
    assert len(under_way) <= 2, under_way

    throwaway("node-up", lost)
    service.becomes_ready()
    assert traffic.failures(settled) == []


def test_suspend_stops_every_pod_and_resume_starts_them(service: Service, traffic: Traffic) -> None:
    service.patch(suspend=True, prefill={"replicas": 1}, decode={"replicas": 1})
    eventually(lambda: not service.pods(), service.tell, SLOW_S)
    assert service.condition("Ready")["reason"] == "Suspended"
    service.patch(suspend=False)
    service.becomes_ready()
    resumed = time.time()
    assert [request for request in traffic.failures(resumed) if request.began > resumed] == []


def test_an_upgrade_of_chart_and_crd_leaves_pods_alone(
    service: Service, bystander: Service, release: Release, traffic: Traffic, moment: float
) -> None:
    serving, operators = service.identities() | bystander.identities(), release.operator_pods()
    assert LATER_COLUMN not in service.kubectl("get", "infsvc")
    release.install(engineImage={"tag": "2"}, operator={"resyncSeconds": RESYNC_S, "logLevel": "debug"})
    eventually(lambda: not set(operators) & set(release.operator_pods()), service.tell, 60)
    service.becomes_ready()
    assert service.identities() | bystander.identities() == serving
    assert LATER_COLUMN in service.kubectl("get", "infsvc")
    assert traffic.failures(moment) == []


def test_nothing_is_written_while_nothing_changes(service: Service, bystander: Service, release: Release) -> None:
    service.becomes_ready()
    bystander.becomes_ready()
    (operator,) = release.operator_pods()

    def versions() -> dict[str, str]:
        found = {}
        for one in (service, bystander):
            kinds = "infsvc,sts,deploy,svc,sa,role,rolebinding,pdb,netpol,secret"
            for item in one.kubectl.get(kinds)["items"]:
                found[f"{item['kind']} {item['metadata']['name']}"] = item["metadata"]["resourceVersion"]
        return found

    before = versions()
    reconciled = pods.reconciles(release.kubectl, operator)
    eventually(lambda: pods.reconciles(release.kubectl, operator) >= reconciled + 6, service.tell, 60)
    assert versions() == before


def test_the_other_service_was_left_alone(bystander: Service, untouched: dict[str, tuple[str, int]]) -> None:
    assert bystander.identities() == untouched


def test_deletion_leaves_nothing(service: Service) -> None:
    service.kubectl("delete", "infsvc", service.name, "--wait", "--timeout=30s")
    kinds = "all,sa,role,rolebinding,pdb,netpol,secret,configmap,hpa"

    def left() -> list[str]:
        return service.kubectl("get", kinds, f"--selector={labels.SERVICE}={service.name}", "--output=name").split()

    eventually(lambda: not left(), lambda: json.dumps(left()), 90)
