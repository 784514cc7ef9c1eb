"""The operator's rights: all that it asks of an API server, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from support.bad_specs import service as body_of
from support.chart import Manifest, of_kind, render
from support.fake_cluster import FakeCluster
from support.infsvc import INSTALLATION, NOW, plan, service
from support.kube_controllers import run_pods
from tandem_contract import labels
from tandem_operator.api.service import KIND
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import CHILDREN, POD_MONITOR, SECRET
from tandem_operator.cluster.lease import Lease
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Reconciler
from tandem_operator.watching import watch

Right = tuple[str, str, str]
"""Verb, API group, resource."""


def rights(roles: Iterable[Manifest]) -> set[Right]:
    return {
        (verb, group, resource)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def everything_asked(kubeconfig: Path) -> set[Right]:
    """The requests of an operator that makes, changes, scales and removes every kind of child, leads and watches."""
    seen = asyncio.Event()
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        write_kubeconfig(kubeconfig, cluster.url)
        cluster.absent.clear()
        mirror = Mirror(client)
        reconciler = Reconciler(client, mirror, INSTALLATION, clock=lambda: NOW)

        async def reconcile() -> None:
            await mirror.refresh()
            await reconciler.reconcile("default", "chat")

        async def settle() -> None:
            for _ in range(10):
                await reconcile()
                await run_pods(cluster)

        made = await cluster.put(body_of(("prefill.scaling", {"maxReplicas": 3})))
        await settle()
        # What an earlier version of the operator made and this one does not want.
        owner = {"kind": KIND, "name": "chat", "uid": made["metadata"]["uid"], "controller": True}
        for kind in (*CHILDREN, POD_MONITOR):
            meta = {"name": "stray", "labels": {labels.SERVICE: "chat"}, "ownerReferences": [owner]}
            await cluster.put({"kind": kind.kind, "metadata": {**meta, "namespace": "default"}, "spec": {}})
        for edited in (child for kind in (*CHILDREN, SECRET, POD_MONITOR) for child in cluster.all(kind.kind)):
            kept = {key: tag for key, tag in edited["metadata"]["labels"].items() if key != labels.PART_OF}
            await cluster.put({**edited, "metadata": {**edited["metadata"], "labels": kept}})
        await reconcile()
        # One that is found by its name only.
        bare = cluster.all("StatefulSet")[0]
        await cluster.put({**bare, "metadata": {**bare["metadata"], "labels": {}}})
        await settle()
        await cluster.put({**made, "spec": body_of(("decode.replicas", 2))["spec"]})
        await settle()
        # A pod that only events explain.
        pod = cluster.all("Pod")[0]
        scheduled = {"type": "PodScheduled", "status": "True"}
        await cluster.put({**pod, "status": {"phase": "Pending", "conditions": [scheduled]}})
        await reconcile()

        lease = Lease(client, "tandem-system", "tandem-operator", "me")
        assert await lease.attempt()
        assert await lease.attempt()
        await lease.release()

        watching = [
            asyncio.create_task(task) for task in (watch(lambda namespace, name: seen.set(), ["default"]), mirror.run())
        ]
        await seen.wait()
        kinds = len(CHILDREN) + len(("Pod", "PodMonitor", "InferenceService"))
        async with asyncio.timeout(20):
            while sum(verb == "watch" for verb, _, _ in cluster.asked) < kinds:  # noqa: ASYNC110 (kopf tells nobody)
                await asyncio.sleep(0.05)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        return cluster.asked


def write_kubeconfig(path: Path, server: str) -> None:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(config))


@pytest.fixture
async def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[Right]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return await everything_asked(tmp_path / "kubeconfig")


async def test_operator_is_granted_what_it_asks_for_and_nothing_else(asked: set[Right]) -> None:
    given = rights(m for m in plan(service()).children if m["kind"] == "Role")
    blocking = {("update", "serving.tandem.dev", "inferenceservices/finalizers")}
    granted = rights(bound(render()))
    assert granted - asked - given - blocking == set(), "granted and never used"
    assert asked | given | blocking <= granted, (asked | given | blocking) - granted


def bound(manifests: list[Manifest]) -> list[Manifest]:
    """Roles that a binding gives to the operator's account."""
    bindings = [*of_kind(manifests, "ClusterRoleBinding"), *of_kind(manifests, "RoleBinding")]
    wanted = {(b["roleRef"]["kind"], b["metadata"].get("namespace"), b["roleRef"]["name"]) for b in bindings}
    for binding in bindings:
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == ("tandem-operator", "tandem-system")
    found = [*of_kind(manifests, "ClusterRole"), *of_kind(manifests, "Role")]
    return [m for m in found if (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) in wanted]


def test_namespaced_operator_has_the_same_rights_in_its_namespaces_only() -> None:
    manifests = render("--set=watchNamespaces={team-a,team-b},rbac.aggregateToDefaultRoles=false")
    assert not of_kind(manifests, "ClusterRole")
    roles = bound(manifests)
    assert {role["metadata"]["namespace"] for role in roles} == {"tandem-system", "team-a", "team-b"}
    (cluster,) = of_kind(bound(render()), "ClusterRole")
    for namespace in ("team-a", "team-b"):
        (role,) = (role for role in roles if role["metadata"]["namespace"] == namespace)
        assert role["rules"] == cluster["rules"]


def test_leases_are_touched_in_the_release_namespace_only() -> None:
    (role,) = (role for role in bound(render()) if role["kind"] == "Role")
    assert rights([role]) == {(verb, "coordination.k8s.io", "leases") for verb in ("create", "get", "update")}
    assert role["metadata"]["namespace"] == "tandem-system"


def test_users_of_the_cluster_see_or_edit_services_by_their_own_roles() -> None:
    roles = {role["metadata"]["name"].rpartition("-")[2]: role for role in of_kind(render(), "ClusterRole")}
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    assert roles["view"]["metadata"]["labels"][f"{aggregate}view"] == "true"
    assert {verb for verb, _, _ in rights([roles["view"]])} == {"get", "list", "watch"}
    assert roles["edit"]["metadata"]["labels"][f"{aggregate}edit"] == "true"
    assert "inferenceservices/status" not in {resource for _, _, resource in rights([roles["edit"]])}
