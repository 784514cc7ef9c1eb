"""The manifests a service becomes: valid for Kubernetes, locked down, and understood by the programs in the pods."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bad_specs import CLB, GOOD_SPECS, uri
from support.infsvc import INSTALLATION, child, engine_sets, observed, plan, pods_of, service
from tandem_contract import labels
from tandem_contract.fetch_flags import FetchFlags
from tandem_contract.flags import GatewayFlags, ServeFlags, parse
from tandem_operator.api.service import MAX_NAME, InvalidSpec
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.model import plan_model
from tandem_operator.plan.observed import SHAPE, WANTED
from tandem_operator.platform import LoadBalancer, Platform, RdmaDevices
from tandem_operator.status.facts import Facts
from tandem_operator.status.report import status

KUBERNETES = "1.34"
SINCE = "2026-01-01T00:00:00Z"


def pod_templates(children: tuple[Manifest, ...]) -> list[Manifest]:
    return [c["spec"]["template"] for c in children if c["kind"] in ("StatefulSet", "Deployment")]


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@pytest.mark.parametrize("name", GOOD_SPECS)
def test_every_child_is_valid_and_owned(name: str) -> None:
    for manifest in plan(service(body=GOOD_SPECS[name]), observed(pod_monitors=True)).children:
        if manifest["kind"] != "PodMonitor":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert owner["controller"]
        assert owner["uid"] == "uid-1"


@pytest.mark.parametrize("name", GOOD_SPECS)
def test_programs_understand_the_arguments_they_get(name: str) -> None:
    sets = {"serve": ServeFlags, "gateway": GatewayFlags, "fetch": FetchFlags}
    for template in pod_templates(plan(service(body=GOOD_SPECS[name])).children):
        for container in containers(template):
            command, *args = container["args"]
            parse(sets[command], args)


@pytest.mark.parametrize("name", GOOD_SPECS)
def test_pods_are_locked_down(name: str) -> None:
    for template in pod_templates(plan(service(body=GOOD_SPECS[name])).children):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] == (containers(template)[-1]["name"] == "gateway")
        mounted = {volume["name"] for volume in spec["volumes"]}
        for container in containers(template):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= mounted
            assert "requests" in container["resources"]


def test_names_fit_at_the_longest_allowed_name() -> None:
    long = dataclasses.replace(service(), name="a" * MAX_NAME)
    for manifest in plan(long).children:
        limit = 52 if manifest["kind"] == "StatefulSet" else 63
        assert len(manifest["metadata"]["name"]) <= limit


def test_preset_fills_what_the_user_left_open() -> None:
    (decode,) = engine_sets(plan(service()), "decode")
    fetch, engine = containers(decode["spec"]["template"])
    flags = parse(ServeFlags, engine["args"][1:])
    assert (flags.tensor_parallel_size, flags.max_model_len) == (2, 40960)
    assert flags.served_model_name == ("Qwen/Qwen3-32B",)
    assert engine["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    download = parse(FetchFlags, fetch["args"][1:])
    assert download.uri == "tos://preset-models-cn-beijing-tob-demo/Qwen/Qwen3-32B/"
    assert download.region == "cn-beijing"
    assert download.destination == flags.model


def test_user_wins_over_the_preset() -> None:
    wanted = service(("decode.parallelism.tensor", 4), ("engine.maxModelLen", 8192), ("model.servedName", "mine"))
    (decode,) = engine_sets(plan(wanted), "decode")
    flags = parse(ServeFlags, containers(decode["spec"]["template"])[1]["args"][1:])
    assert (flags.tensor_parallel_size, flags.max_model_len, flags.served_model_name) == (4, 8192, ("mine",))


def test_a_context_beyond_the_checkpoints_own_switches_yarn_on() -> None:
    def flags(wanted: int, *changes: tuple[str, Any]) -> ServeFlags:
        made = engine_sets(plan(service(("engine.maxModelLen", wanted), *changes)), "prefill")
        return parse(ServeFlags, containers(made[0]["spec"]["template"])[1]["args"][1:])

    assert flags(40960).rope_scaling is None, "short prompts would pay for it"
    assert flags(131072).rope_scaling == "yarn:4.0:32768"
    assert flags(65536).rope_scaling == "yarn:2.0:32768"
    own = flags(200_000, ("engine.extraArgs", ["--rope-scaling=yarn:8:32768"]))
    assert own.rope_scaling == "yarn:8:32768"


def test_rdma_sets_all_that_belongs_to_it_and_only_there() -> None:
    made = plan(service(("prefill.rdma", 2)))
    (prefill,), (decode,) = engine_sets(made, "prefill"), engine_sets(made, "decode")
    template = prefill["spec"]["template"]
    engine = containers(template)[-1]
    assert engine["resources"]["limits"]["example.com/rdma"] == "2"
    assert engine["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert {"name": "NCCL_IB_GID_INDEX", "value": "3"} in engine["env"]
    assert template["metadata"]["annotations"]["example.com/networks"] == '[{"name": "fast"}, {"name": "fast"}]'
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in template["spec"]["volumes"]
    for trace in ("example.com", "IPC_LOCK", "NCCL_IB_GID_INDEX"):
        assert trace not in str(decode)


def test_platform_fills_what_services_leave_open() -> None:
    usual = LoadBalancer(load_balancer_class="cloud/lb", annotations={"subnet": "usual", "spec": "small"})
    cloud = Platform(region="cn-beijing", network="VPC", load_balancer=usual, monitor_labels={"scrape": "yes"})
    there = dataclasses.replace(INSTALLATION, platform=cloud)

    def gateway(settings: dict[str, Any], *seen: Manifest) -> Manifest:
        changes = [("gateway.service", settings), ("model.region", None)]
        made = plan(service(*changes), observed(seen, pod_monitors=True), there)
        assert child(made.children, "PodMonitor", "chat")["metadata"]["labels"]["scrape"] == "yes"
        return child(made.children, "Service", "chat-gateway")

    private = gateway({})
    assert "annotations" not in private["metadata"]
    open_ = gateway({"type": "LoadBalancer", "annotations": {"subnet": "mine"}})
    assert open_["spec"]["loadBalancerClass"] == "cloud/lb"
    assert open_["metadata"]["annotations"] == {"subnet": "mine", "spec": "small"}
    # Its class cannot change once it is there: an installation that learns of one must not break old services.
    old = copy.deepcopy(open_)
    del old["spec"]["loadBalancerClass"]
    assert "loadBalancerClass" not in gateway({"type": "LoadBalancer"}, old)["spec"]
    own = gateway({"type": "LoadBalancer", "loadBalancerClass": "other/lb"})
    assert own["spec"]["loadBalancerClass"] == "other/lb"
    assert "annotations" not in own["metadata"]

    tos, s3 = service(("model.region", None)), service(body=uri("s3://bucket/model", ("model.region", None)))
    fetches = [plan_model(one.spec.model, one.spec.decode, there).fetch for one in (tos, s3)]
    assert [(fetch.region, fetch.internal) for fetch in fetches] == [("cn-beijing", True), (None, False)]


def test_another_platform_leaves_running_pods_alone() -> None:
    before = plan(service(("prefill.rdma", 1)))
    moved = dataclasses.replace(
        INSTALLATION, platform=Platform(network="VPC", rdma=RdmaDevices(resource_name="other/rdma"))
    )
    after = plan(service(("prefill.rdma", 1)), observed(before.children), moved)
    assert pod_templates(after.children) == pod_templates(before.children)


def test_load_balancer_settings_reach_the_service() -> None:
    settings = {"type": "LoadBalancer", "loadBalancerClass": "volcengine.com/clb", "annotations": {f"{CLB}id": "clb-1"}}
    gateway = child(plan(service(("gateway.service", settings))).children, "Service", "chat-gateway")
    assert gateway["spec"]["loadBalancerClass"] == "volcengine.com/clb"
    assert gateway["metadata"]["annotations"] == {f"{CLB}id": "clb-1"}
    assert [port["port"] for port in gateway["spec"]["ports"]] == [8000, 8080]


def test_network_policy_closes_handoff_and_data_ports() -> None:
    policy = child(plan(service()).children, "NetworkPolicy", "chat-engine")
    open_to_all = [rule["ports"] for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": 8080, "protocol": "TCP"}]]


def test_environment_is_expanded_in_mounted_paths() -> None:
    env = [{"name": "VEPFS_MODEL_PATH", "value": "/vepfs/qwen"}]
    changes = [("model", {"uri": "hostPath://$VEPFS_MODEL_PATH/3-32B"})]
    both = [*changes, ("prefill.template.env", env), ("decode.template.env", env)]
    (prefill,) = engine_sets(plan(service(*both)), "prefill")
    assert prefill["spec"]["template"]["spec"]["volumes"][0] == {
        "name": "model", "hostPath": {"path": "/vepfs/qwen/3-32B", "type": "Directory"},
    }  # fmt: skip
    with pytest.raises(InvalidSpec, match=r"VEPFS_MODEL_PATH is not set"):
        plan(service(*changes))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("model.preset", "Qwen9"), r"spec\.model\.preset: Qwen9 is unknown; one of Qwen2\.5"),
        (("decode.rdma", 1), r"spec\.decode\.rdma: this installation knows no RDMA devices"),
        (("model.region", None), r"spec\.model\.region is required with preset Qwen3-32B"),
        (("engine.maxModelLen", 200_000), r"spec\.engine\.maxModelLen 200000 exceeds the 131072 tokens that"),
        (("engine.extraArgs", ["--max-num-seqs=many"]), r"extraArgs.*--max-num-seqs.*invalid int"),
        (
            ("decode.scaling", {"maxReplicas": 2, "targets": [{"metric": "cpu", "average": "500m"}]}),
            r"scaling\.targets\[\]\.average: 500m must be whole percent",
        ),
        (("prefill.extraArgs", ["--page-size=0"]), r"spec\.prefill\.extraArgs: --page-size must be at least 1"),
    ],
)
def test_what_only_the_operator_can_check_is_named(change: tuple[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        plan(service(change), None, dataclasses.replace(INSTALLATION, platform=Platform()))


def test_only_what_shapes_pods_changes_the_revision() -> None:
    before = plan(service()).revision
    for same in [
        ("decode.replicas", 5), ("decode.scaling", {"maxReplicas": 3}), ("prefill.rollout.maxSurge", 2),
        ("gateway.replicas", 3), ("monitoring.podMonitor", False), ("suspend", True), ("engine.quantization", "auto"),
    ]:  # fmt: skip
        assert plan(service(same)).revision == before, same
    for other in [
        ("prefill.template.image", "x:2"), ("engine.extraArgs", ["--seed=1"]), ("model.servedName", "x"),
        ("decode.parallelism.tensor", 4), ("restartedAt", "now"), ("decode.rdma", 1),
    ]:  # fmt: skip
        assert plan(service(other)).revision != before, other


def test_upgraded_operator_leaves_running_pods_alone() -> None:
    """Symptom elsewhere: `helm upgrade` of the operator restarts every model server in the cluster."""
    before = plan(service())
    newer = dataclasses.replace(INSTALLATION, engine_image="tandem-runtime:2", small_image="tandem:2")
    after = plan(service(("decode.replicas", 3)), observed(before.children), newer)
    assert pod_templates(after.children) == pod_templates(before.children)
    changed = plan(service(("restartedAt", "now")), observed(before.children), newer)
    assert {c["spec"]["containers"][0]["image"] for c in pod_templates(changed.children)} >= {"tandem-runtime:2"}


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (("gateway.ui", False), True),
        (("gateway.strategy", "RoundRobin"), True),
        (("gateway.auth.apiKeySecretRef", {"name": "keys"}), True),
        (("gateway.template.labels", {"team": "a"}), True),
        (("restartedAt", "now"), True),
        (("gateway.replicas", 3), False),
        (("gateway.service.exposeMetrics", False), False),
    ],
)
def test_gateways_are_replaced_by_what_they_see_and_nothing_else(change: tuple[str, Any], changes: bool) -> None:
    """Symptom: ui, once the gateway was there, changed nothing, because the recorded template was kept."""
    first = plan(service()).children
    before, after = (
        child(children, "Deployment", "chat-gateway")
        for children in (first, plan(service(change), observed(first)).children)
    )
    assert (before["metadata"]["annotations"][SHAPE] != after["metadata"]["annotations"][SHAPE]) == changes
    (gateway,) = containers(after["spec"]["template"])
    assert ("--no-ui" in gateway["args"]) == (change[0] == "gateway.ui")


def test_hand_edited_template_is_restored_from_its_record() -> None:
    before = plan(service())
    edited = observed(before.children)
    for (kind, _), manifest in edited.children.items():
        if kind == "StatefulSet":
            manifest["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    assert engine_sets(plan(service(), edited)) == engine_sets(before)


decode_sets = st.lists(
    st.tuples(st.sampled_from(["target", "old", "older"]), st.integers(0, 12), st.sampled_from([None, "0", "5", "x"])),
    unique_by=lambda found: found[0],
)


@settings(max_examples=60, deadline=None)
@given(sets=decode_sets, least=st.integers(1, 3))
def test_autoscaled_role_wants_its_least_at_any_time(sets: list[tuple[str, int, str | None]], least: int) -> None:
    """Symptom: a listing that said DECODE 0/0. Whatever sets are there, resumed, edited or amid a rollout: a service
    that is not suspended wants pods within its limits, and says so."""
    wanted = service(("decode.scaling", {"minReplicas": least, "maxReplicas": 8}))
    (template,) = engine_sets(plan(wanted), "decode")
    children = []
    for revision, replicas, note in sets:
        made = copy.deepcopy(template)
        meta = made["metadata"]
        if revision != "target":
            meta["name"] = f"chat-decode-{revision}"
            meta["labels"] = {**meta["labels"], labels.REVISION: revision}
        meta["annotations"] = {} if note is None else {WANTED: note}
        made["spec"]["replicas"] = replicas
        children.append(made)
    seen = observed(children)
    made_plan = plan(wanted, seen)
    assert least <= made_plan.desired["decode"] <= 8
    report = status(Facts.gather(wanted, made_plan, seen), {}, now=SINCE, cluster_domain="x")
    assert report["decode"]["summary"] == f"0/{made_plan.desired['decode']}"


def test_autoscaled_replicas_have_one_writer() -> None:
    """Symptom elsewhere: operator and autoscaler undo each other's replicas forever."""
    scaling = ("decode.scaling", {"minReplicas": 2, "maxReplicas": 8})
    first = plan(service(scaling))
    (decode,) = engine_sets(first, "decode")
    assert decode["spec"]["replicas"] == 2
    decode["spec"]["replicas"] = 5
    pods = [pod for made in engine_sets(first) for pod in pods_of(made)]
    steady = plan(service(scaling), observed(first.children, pods))
    assert "replicas" not in engine_sets(steady, "decode")[0]["spec"]
    scaler = child(steady.children, "HorizontalPodAutoscaler", "chat-decode")
    assert scaler["spec"]["scaleTargetRef"]["name"] == decode["metadata"]["name"]

    rolling = plan(service(scaling, ("restartedAt", "now")), observed(first.children, pods))
    assert rolling.desired["decode"] == 5
    assert all("replicas" in made["spec"] for made in engine_sets(rolling))
    assert not [c for c in rolling.children if c["kind"] == "HorizontalPodAutoscaler"]

    suspended = plan(service(scaling, ("suspend", True)), observed(first.children, pods))
    assert [made["spec"]["replicas"] for made in engine_sets(suspended, "decode")] == [0]
    assert not [c for c in suspended.children if c["kind"] == "HorizontalPodAutoscaler"]


def test_pod_monitor_only_where_the_crd_exists() -> None:
    kinds = [{c["kind"] for c in plan(service(), observed(pod_monitors=there)).children} for there in (False, True)]
    assert ["PodMonitor" in found for found in kinds] == [False, True]
    labelled = plan(service(("monitoring.labels", {"volcengine.vmp": "true"})), observed(pod_monitors=True))
    assert child(labelled.children, "PodMonitor", "chat")["metadata"]["labels"]["volcengine.vmp"] == "true"


def test_gateway_account_may_watch_pods_and_nothing_else() -> None:
    role = child(plan(service()).children, "Role", "chat-gateway")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]


def test_a_download_reserves_no_more_than_its_engine() -> None:
    """Small engines did not fit a node, because their init containers asked for half a CPU."""
    wanted = plan(service(("decode.template.resources.requests", {"cpu": "20m"}))).children
    pods = [template["spec"] for template in pod_templates(wanted) if "initContainers" in template["spec"]]
    assert {pod["containers"][0]["resources"]["requests"]["cpu"] for pod in pods} > {"20m"}
    for pod in pods:
        assert pod["initContainers"][0]["resources"]["requests"] == pod["containers"][0]["resources"]["requests"]


def test_a_download_has_the_limits_of_its_engine_but_no_devices() -> None:
    """Symptom: no pod could be Guaranteed, and a namespace with a quota of limits refused all of them."""
    limits = {"cpu": "4", "memory": "16Gi"}
    (decode,) = engine_sets(plan(service(("decode.template.resources.limits", limits))), "decode")
    fetch, engine = containers(decode["spec"]["template"])
    assert fetch["resources"]["limits"] == limits
    assert engine["resources"]["limits"] == {**limits, "nvidia.com/gpu": "2"}
    (prefill,) = engine_sets(plan(service()), "prefill")
    assert "limits" not in containers(prefill["spec"]["template"])[0]["resources"]
