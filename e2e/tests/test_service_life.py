"""One service from its first pod to its last, under traffic without pause. The tests are a story: they run in order."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
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
    namespace,
    secrets,
)
from support.traffic import NAME as TRAFFIC
from support.traffic import Traffic
from tandem_cluster.kubectl import Kubectl
from tandem_contract import labels, metrics, ports
from tandem_operator.plan import names, ticket_keys
from tandem_operator.plan.pods import TICKET_KEYS

pytestmark = pytest.mark.timeout(600)
ROLES = ("prefill", "decode", "gateway")
OTHER_KEY = "sk-e2e-other"
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

REACHED = """\
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(port):
    try:
        socket.create_connection((sys.argv[1], port), timeout=10).close()
    except ConnectionRefusedError:
        return True  # nobody listens there
    except TimeoutError:
        return False
    return True
ports = list(map(int, sys.argv[2:]))
with ThreadPoolExecutor(len(ports)) as pool:
    print(json.dumps([port for port, found in zip(ports, pool.map(reached, ports)) if found]))
"""


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    kubectl = Kubectl(kubeconfig, f"e2e-life-{uuid4().hex[:6]}")
    namespace(kubectl)
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture(scope="module")
def earlier(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Of a chart before this one, as that of a user who upgrades."""
    release.install(earlier_chart(tmp_path_factory.mktemp("earlier")))
    return release


@pytest.fixture(scope="module")
def nodes(kubectl: Kubectl) -> list[str]:
    return sorted(str(node["metadata"]["name"]) for node in kubectl.get("nodes")["items"])


@pytest.fixture(scope="module")
def spared(nodes: list[str]) -> str:
    """The node that is never taken down."""
    return nodes[0]


@pytest.fixture(scope="module")
def other(nodes: list[str]) -> str:
    """The node that is."""
    return nodes[1]


@pytest.fixture(scope="module")
def bystander(earlier: Release, model_store: None, spared: str) -> Iterator[Service]:
    """A service in another namespace that nobody touches."""
    kubectl = Kubectl(earlier.kubectl.kubeconfig, f"e2e-bystander-{uuid4().hex[:6]}")
    namespace(kubectl)
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


@pytest.fixture(scope="module")
def namespaced(service: Service, bystander: Service) -> Iterator[list[Release]]:
    """Two releases with a namespace each to look after, not installed yet."""
    releases = [
        Release(Kubectl(one.kubectl.kubeconfig, f"{one.kubectl.namespace}-ops")) for one in (service, bystander)
    ]
    yield releases
    for release in releases:
        release.uninstall()
        release.kubectl("delete", "namespace", release.kubectl.namespace, "--wait=false", "--ignore-not-found")


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


@pytest.mark.parametrize(("key", "status"), [(KEY, "200"), (OTHER_KEY, "401")])
def test_only_a_right_key_is_let_in(service: Service, traffic: Traffic, key: str, status: str) -> None:
    assert traffic.run("python", "-c", STATUS, service.url, key).strip() == status


def test_keys_are_changed_while_requests_run(service: Service, traffic: Traffic, moment: float) -> None:
    """All stages of a rotation of the ticket keys; meanwhile an API key is added and taken away again."""
    (before,) = kept_ticket_keys(service)
    (decode,) = service.pods("decode")
    refused = metric(traffic, decode, metrics.TICKETS_REFUSED.name)

    def answers(status: str) -> Callable[[], bool]:
        return lambda: traffic.run("python", "-c", STATUS, service.url, OTHER_KEY).strip() == status

    service.kubectl.apply(*secrets(OTHER_KEY))
    rotate(service, "steady")
    eventually(answers("200"), service.tell, SLOW_S)
    service.kubectl.apply(*secrets())
    rotate(service, "learn")
    eventually(answers("401"), service.tell, SLOW_S)
    rotate(service, "sign")

    (after,) = kept_ticket_keys(service)
    assert after != before
    handed_over = metric(traffic, decode, metrics.HANDOFF_PAGES.name, side="received")
    assert traffic.failures(moment) == []
    # A refused ticket costs its client nothing, so that only the pods know of one.
    assert metric(traffic, decode, metrics.TICKETS_REFUSED.name) == refused
    assert metric(traffic, decode, metrics.HANDOFF_PAGES.name, side="received") > handed_over


def rotate(service: Service, stage: str) -> None:
    """Has the time of `stage` be over, and waits until all pods hold the keys of the next."""
    secret, before = names.ticket_key(service.name), kept_ticket_keys(service)
    service.kubectl("annotate", "--overwrite", "secret", secret, f"{ticket_keys.STAGE}={stage}:0")
    eventually(lambda: kept_ticket_keys(service) != before, service.tell, SLOW_S)
    keys = kept_ticket_keys(service)

    def held(pod: dict[str, Any]) -> list[str]:
        return service.kubectl(
            "exec", pod["metadata"]["name"], "--", "cat", f"{TICKET_KEYS}/{ticket_keys.FILE}"
        ).split()

    eventually(lambda: all(held(pod) == keys for pod in service.pods()), service.tell, SLOW_S)


def kept_ticket_keys(service: Service) -> list[str]:
    secret = service.kubectl.get("secret", names.ticket_key(service.name))
    return base64.b64decode(secret["data"][ticket_keys.FILE]).decode().split()


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


@pytest.mark.usefixtures("throwaway", "traffic")  # other clusters' networks may not enforce policies
def test_each_pod_reaches_only_the_ports_of_engine_pods_that_it_needs(service: Service) -> None:
    (prefill,), (decode,) = service.pods("prefill"), service.pods("decode")
    gateway, *_ = service.pods("gateway")

    def reached(pod: dict[str, Any], engine: dict[str, Any]) -> set[int]:
        wanted = (ports.API, ports.METRICS, ports.HANDOFF, ports.KV_DATA)
        arguments = (engine["status"]["podIP"], *map(str, wanted))
        found = service.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", REACHED, *arguments)
        return set(json.loads(found))

    stranger = service.kubectl.get("pod", TRAFFIC)
    for engine, peer in ((prefill, decode), (decode, prefill)):
        assert reached(stranger, engine) == {ports.METRICS}
        assert reached(gateway, engine) == {ports.API, ports.METRICS}
        assert reached(peer, engine) == {ports.METRICS, ports.HANDOFF, ports.KV_DATA}


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
    for role in ROLES:
        victim = service.pods(role)[0]
        name = victim["metadata"]["name"]
        restarts, moment = pods.restarts(service.kubectl, name), time.time()
        pods.kill(victim)
        killed = time.time()
        eventually(
            lambda name=name, before=restarts: pods.restarts(service.kubectl, name) > before, service.tell, SLOW_S
        )
        service.becomes_ready()
        cut_off = traffic.failures(moment)
        # A prefill pod holds no answer; of the others only answers that were being written are lost.
        assert all(request.began < killed for request in cut_off), (role, cut_off)
        assert len(cut_off) <= (0 if role == "prefill" else 2), (role, cut_off)


def test_a_rollout_outlives_its_operator_and_the_api_server(
    service: Service, release: Release, traffic: Traffic, moment: float, throwaway: Callable[..., None]
) -> None:
    (before,) = service.revisions()
    service.patch(decode={"replicas": 1}, engine={"extraArgs": [*ENGINE_FLAGS, "--max-num-batched-tokens=256"]})
    (operator,) = release.operator_pods()
    for _ in range(2):
        restarts = pods.restarts(release.kubectl, operator)
        pods.kill(release.kubectl.get("pod", operator))
        eventually(lambda before=restarts: pods.restarts(release.kubectl, operator) > before, service.tell, SLOW_S)
    throwaway("restart", "kube-apiserver")
    service.becomes_ready()
    assert before not in service.revisions()
    assert traffic.failures(moment) == []


def test_a_lost_node_costs_only_what_was_under_way(
    service: Service, traffic: Traffic, nodes: list[str], other: str, moment: float, throwaway: Callable[..., None]
) -> None:
    service.patch(prefill={"replicas": 2}, decode={"replicas": 2})
    service.becomes_ready()
    assert {role: sorted(service.nodes(role)) for role in ROLES} == dict.fromkeys(ROLES, nodes)
    throwaway("node-down", other)
    lost = time.time()
    service.kubectl("wait", f"node/{other}", "--for=condition=Ready=Unknown", f"--timeout={SLOW_S}s")
    eventually(lambda: service.condition("Ready")["status"] == "False", service.tell, SLOW_S)
    cut_off = traffic.failures(moment)
    # Both workers may have had a stream through the gateway there. What began later has to find another.
    assert all(request.began < lost for request in cut_off), cut_off
    assert len(cut_off) <= 2, cut_off

    throwaway("node-up", other)
    service.becomes_ready()
    assert traffic.failures(moment) == cut_off


def test_suspend_stops_every_pod_and_resume_starts_them(service: Service, traffic: Traffic) -> None:
    service.patch(suspend=True)
    eventually(lambda: not service.pods(), service.tell, SLOW_S)
    assert service.condition("Ready")["reason"] == "Suspended"
    service.patch(suspend=False)
    service.becomes_ready()
    resumed = time.time()
    assert [request for request in traffic.failures(resumed) if request.began > resumed] == []


def test_draining_a_node_fails_no_request(
    service: Service, traffic: Traffic, nodes: list[str], other: str, moment: float, throwaway: Callable[..., None]
) -> None:
    # They were all made anew by the last test, with both nodes to choose from.
    assert {role: sorted(service.nodes(role)) for role in ROLES} == dict.fromkeys(ROLES, nodes)
    try:
        service.kubectl("drain", other, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={SLOW_S}s")
        service.becomes_ready()
        assert all(other not in service.nodes(role) for role in ROLES)
        assert traffic.failures(moment) == []
    finally:
        service.kubectl("uncordon", other)


def test_an_upgrade_of_chart_and_crd_leaves_pods_alone(
    service: Service, bystander: Service, release: Release, traffic: Traffic, moment: float
) -> None:
    serving, operators = service.identities() | bystander.identities(), release.operator_pods()
    assert LATER_COLUMN not in service.kubectl("get", "infsvc")
    release.install(engineImage={"tag": "2"}, operator={"resyncSeconds": RESYNC_S, "logLevel": "debug"})
    eventually(lambda: not set(operators) & set(release.operator_pods()), service.tell, SLOW_S)
    service.becomes_ready()
    assert service.identities() | bystander.identities() == serving
    assert LATER_COLUMN in service.kubectl("get", "infsvc")
    assert traffic.failures(moment) == []


def test_nothing_is_written_while_nothing_changes(service: Service, bystander: Service, release: Release) -> None:
    service.becomes_ready()
    bystander.becomes_ready()
    (operator,) = release.operator_pods()

    def written() -> dict[str, list[tuple[str, str]]]:
        """By whom of the operator and when; other controllers still write the status of what a test has stirred up."""
        found = {}
        for one in (service, bystander):
            kinds = "infsvc,sts,deploy,svc,sa,role,rolebinding,pdb,netpol,secret"
            for item in one.kubectl.get(kinds, "--show-managed-fields")["items"]:
                writers = [
                    entry
                    for entry in item["metadata"].get("managedFields", [])
                    if entry["manager"].startswith(names.MANAGER)
                ]
                found[f"{item['kind']} {item['metadata']['name']}"] = [(w["manager"], w["time"]) for w in writers]
        return found

    before = written()
    assert sum(map(len, before.values())) > 20
    reconciled = pods.reconciles(release.kubectl, operator)
    eventually(lambda: pods.reconciles(release.kubectl, operator) >= reconciled + 6, service.tell, SLOW_S)
    assert written() == before


def test_services_outlive_their_release_and_are_taken_over_by_two_others(
    service: Service, bystander: Service, release: Release, namespaced: list[Release], traffic: Traffic, moment: float
) -> None:
    """The cluster-wide release is gone afterwards; the new ones look after one of the services' namespaces each."""
    serving = service.identities() | bystander.identities()
    release.uninstall()
    for one in (service, bystander):
        one.patch(gateway={"service": {"annotations": {"e2e/asked": "yes"}}})
    for one, untouched, new in ((service, [bystander], namespaced[0]), (bystander, [], namespaced[1])):
        # The CRD belongs to the release that was there first.
        new.install(watchNamespaces=[one.kubectl.namespace], crds={"install": False})
        one.becomes_ready()
        exposed = one.kubectl.get("service", names.gateway(one.name))
        assert exposed["metadata"]["annotations"]["e2e/asked"] == "yes"
        assert [a_service.status() for a_service in untouched] == [{}] * len(untouched)
    assert service.identities() | bystander.identities() == serving
    assert traffic.failures(moment) == []


def test_the_other_service_was_left_alone(bystander: Service, untouched: dict[str, tuple[str, int]]) -> None:
    assert bystander.identities() == untouched


def test_deletion_leaves_nothing(service: Service) -> None:
    service.kubectl("delete", "infsvc", service.name, "--wait", "--timeout=60s")
    kinds = "all,sa,role,rolebinding,pdb,netpol,secret,configmap,hpa"

    def left() -> list[str]:
        return service.kubectl("get", kinds, f"--selector={labels.SERVICE}={service.name}", "--output=name").split()

    eventually(lambda: not left(), lambda: json.dumps(left()), SLOW_S)
