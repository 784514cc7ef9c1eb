"""The examples: admitted as the API server would, planned by the operator, and worth what they promise."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from support import examples
from support.chart import CHART
from support.crd_admission import admit
from support.infsvc import INSTALLATION, child, engine_sets, observed, plan
from tandem_contract.fetch_flags import FetchFlags
from tandem_contract.flags import GatewayFlags, ServeFlags, parse
from tandem_operator.api.service import parse_spec
from tandem_operator.crdgen.crd import openapi_schema
from tandem_operator.plan.children import Plan
from tandem_operator.plan.context import Manifest, Service
from tandem_operator.platform import Platform

VALUES = yaml.safe_load((CHART / "values-volcengine.yaml").read_text(encoding="utf-8"))
VOLCENGINE = dataclasses.replace(INSTALLATION, platform=Platform.model_validate(VALUES["platform"]))
PRESETS = "tos://preset-models-cn-beijing-tob-demo/Qwen/"


@dataclass(frozen=True, kw_only=True)
class Facts:
    model: str
    """Name that clients send."""
    uri: str
    pods: tuple[int, int]
    """Prefill and decode."""
    gpus: int
    """Of one pod."""
    context: int | None = None
    more: list[str] = field(default_factory=list)
    """What must appear in the engine pods' manifests."""


FACTS = {
    "minimal.yaml": Facts(
        model="Qwen3-0.6B", uri="hf://Qwen/Qwen3-0.6B", pods=(1, 1), gpus=0, context=4096, more=["--device=cpu"]
    ),
    "qwen3-32b.yaml": Facts(
        model="Qwen/Qwen3-32B",
        uri=f"{PRESETS}Qwen3-32B/",
        pods=(2, 4),
        gpus=2,
        context=40960,
        more=["/mnt/nvme/models"],
    ),
    "qwen3-235b-a22b.yaml": Facts(
        model="Qwen/Qwen3-235B-A22B",
        uri=f"{PRESETS}Qwen3-235B-A22B/",
        pods=(1, 2),
        gpus=8,
        context=40960,
        more=["nvidia.com/gpu", "256Gi"],
    ),
    "qwen2.5-32b.yaml": Facts(
        model="Qwen/Qwen2.5-32B-Instruct", uri=f"{PRESETS}Qwen2.5-32B-Instruct/", pods=(1, 2), gpus=2, context=32768
    ),
    "qwen2.5-72b.yaml": Facts(
        model="Qwen/Qwen2.5-72B-Instruct",
        uri=f"{PRESETS}Qwen2.5-72B-Instruct/",
        pods=(1, 2),
        gpus=4,
        context=32768,
        more=["'claimName': 'models'"],
    ),
    "private-tos.yaml": Facts(
        model="qwen3-32b-tuned",
        uri="tos://my-bucket/models/qwen3-32b-tuned/",
        pods=(1, 2),
        gpus=2,
        more=["'secretName': 'tos-credentials'", "--internal"],
    ),
    "vepfs.yaml": Facts(
        model="Qwen/Qwen3-32B",
        uri="hostPath:///vepfs/models/Qwen3-32B",
        pods=(1, 2),
        gpus=2,
        more=["'path': '/vepfs/models/Qwen3-32B'"],
    ),
    "autoscaled.yaml": Facts(model="Qwen/Qwen3-32B", uri=f"{PRESETS}Qwen3-32B/", pods=(1, 2), gpus=2, context=40960),
    "api-keys.yaml": Facts(model="Qwen/Qwen3-32B", uri=f"{PRESETS}Qwen3-32B/", pods=(1, 1), gpus=2, context=40960),
    "volcengine.yaml": Facts(
        model="Qwen/Qwen3-32B",
        uri=f"{PRESETS}Qwen3-32B/",
        pods=(2, 4),
        gpus=2,
        context=40960,
        more=["'vke.volcengine.com/rdma': '1'", '[{"cniConf": {"name": "rdma"}}]', "IPC_LOCK", "--internal"],
    ),
}


def planned(name: str) -> Plan:
    body = examples.service(name)
    one = Service(name=body["metadata"]["name"], namespace="default", uid="uid-1", generation=1, spec=parse_spec(body))
    installation = VOLCENGINE if name == "volcengine.yaml" else INSTALLATION
    return plan(one, observed(pod_monitors=True), installation)


def test_every_example_is_described_and_checked() -> None:
    assert set(FACTS) == set(examples.NAMES)
    page = (examples.FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w.-]+\.yaml)\)", page)) == set(examples.NAMES)


@pytest.mark.parametrize("name", examples.NAMES)
def test_example_is_admitted(name: str) -> None:
    for manifest in examples.manifests(name):
        if manifest["kind"] == "InferenceService":
            _, problems = admit(manifest, openapi_schema())
            assert problems == []
        else:
            kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("name", examples.NAMES)
def test_example_becomes_the_pods_it_promises(name: str) -> None:
    facts, made = FACTS[name], planned(name)
    assert (made.model.served_name, made.model.uri) == (facts.model, facts.uri)
    for role, pods in zip(("prefill", "decode"), facts.pods, strict=True):
        (manifest,) = engine_sets(made, role)
        assert manifest["spec"]["replicas"] == pods
        pod = manifest["spec"]["template"]["spec"]
        (fetch,), (engine,) = pod["initContainers"], pod["containers"]
        assert (fetch["image"], engine["image"]) == (INSTALLATION.small_image, INSTALLATION.engine_image)
        flags = parse(ServeFlags, engine["args"][1:])
        assert (flags.role, flags.served_model_name, flags.max_model_len) == (role, (facts.model,), facts.context)
        assert flags.tensor_parallel_size == max(1, facts.gpus)
        limits = engine["resources"].get("limits", {})
        assert limits.get("nvidia.com/gpu") == (str(facts.gpus) if facts.gpus else None)
        parse(FetchFlags, fetch["args"][1:])
        for trace in facts.more:
            assert trace in str(manifest["spec"]["template"])


def gateway(name: str) -> tuple[Manifest, Manifest]:
    """Deployment and Service."""
    made, service = planned(name), examples.service(name)["metadata"]["name"]
    return tuple(child(made.children, kind, f"{service}-gateway") for kind in ("Deployment", "Service"))  # type: ignore[return-value]


def test_secrets_that_examples_name_are_in_them() -> None:
    def named(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {v["name"] for k, v in value.items() if k in ("secretRef", "apiKeySecretRef")}
            return own.union(*map(named, value.values()))
        return set().union(*map(named, value)) if isinstance(value, list) else set()

    for name in ("private-tos.yaml", "api-keys.yaml"):
        there = {one["metadata"]["name"] for one in examples.manifests(name) if one["kind"] == "Secret"}
        assert named(examples.service(name)) == there != set()


def test_keys_of_the_api_keys_example_are_read_by_the_gateway() -> None:
    deployment, _ = gateway("api-keys.yaml")
    flags = parse(GatewayFlags, deployment["spec"]["template"]["spec"]["containers"][0]["args"][1:])
    (secret,) = (one for one in examples.manifests("api-keys.yaml") if one["kind"] == "Secret")
    assert flags.api_key_file is not None
    assert Path(flags.api_key_file).name in secret["stringData"]


def test_autoscaled_example_scales_both_roles() -> None:
    scalers = [c for c in planned("autoscaled.yaml").children if c["kind"] == "HorizontalPodAutoscaler"]
    assert {(s["spec"]["minReplicas"], s["spec"]["maxReplicas"]) for s in scalers} == {(1, 4), (2, 8)}


def test_volcengine_example_is_reached_through_a_clb_and_seen_by_vmp() -> None:
    _, service = gateway("volcengine.yaml")
    assert service["spec"]["loadBalancerClass"] == "volcengine.com/clb"
    assert any(key.endswith("loadbalancer-subnet-id") for key in service["metadata"]["annotations"])
    assert [port["port"] for port in service["spec"]["ports"]] == [8000], "no metrics on a public address"
    monitor = child(planned("volcengine.yaml").children, "PodMonitor", "volcengine")
    assert monitor["metadata"]["labels"]["volcengine.vmp"] == "true"


def test_only_the_volcengine_examples_know_the_cloud() -> None:
    for name in examples.NAMES:
        if name != "volcengine.yaml":
            assert "volcengine" not in str(planned(name).children)
