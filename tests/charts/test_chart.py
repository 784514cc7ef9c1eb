"""The chart as helm renders it: valid for Kubernetes, locked down, and understood by the operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from pydantic import BaseModel
from support.chart import CHART, KUBERNETES, Manifest, of_kind, render, run
from tandem_contract.flags import parse
from tandem_operator import platform, presets
from tandem_operator.crdgen.crd import crd
from tandem_operator.options import OperatorFlags
from tandem_operator.platform import Platform
from tandem_operator.presets import Preset

ROLE = {"tensor": 1, "cpu": 4, "memory": "16Gi"}
MINE = {"uri": "hf://me/mine", "servedName": "mine", "maxModelLen": 4096, "prefill": ROLE, "decode": ROLE}
VALUE_SETS = {
    "defaults": [],
    "highly available": ["--set=replicas=3"],
    "two namespaces": ["--set=watchNamespaces={team-a,team-b}", "--set=crds.install=false"],
    "given account": ["--set=serviceAccount.create=false,serviceAccount.name=mine,rbac.create=false"],
    "pinned images": [f"--set=image.digest=sha256:{'a' * 64},engineImage.tag=v2,imagePullSecrets={{registry}}"],
    "own preset": [f"--set-json=presets={json.dumps({'Mine': MINE})}"],
    "Volcengine": [f"--values={CHART}/values-volcengine.yaml"],
    "labels": [
        "--set=commonLabels.team=ml,podLabels.team=serving,monitoring.dashboards.labels=null",
        r"--set=podLabels.app\.kubernetes\.io/name=theirs,monitoring.labels.team=metrics",
    ],
    "placement": [
        "--set=nodeSelector.pool=cpu,priorityClassName=system-cluster-critical",
        '--set-json=tolerations=[{"operator": "Exists"}]',
    ],
}


def deployment(*argv: str) -> Manifest:
    (found,) = of_kind(render(*argv), "Deployment")
    return found


def container(*argv: str) -> Manifest:
    (found,) = deployment(*argv)["spec"]["template"]["spec"]["containers"]
    return found


def operator_config(*argv: str) -> Manifest:
    (found,) = (made for made in of_kind(render(*argv), "ConfigMap") if made["metadata"]["name"] == "tandem-operator")
    return found


def test_chart_passes_lint() -> None:
    done = run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_rendered_manifests_are_valid(name: str) -> None:
    manifests = render(*VALUE_SETS[name])
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        assert manifest["metadata"].get("namespace") or manifest["kind"] in (
            "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
        )  # fmt: skip
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", VALUE_SETS)
def test_operator_understands_its_arguments(name: str) -> None:
    command, *args = container(*VALUE_SETS[name])["args"]
    assert command == "operator"
    flags = parse(OperatorFlags, args)
    assert flags.leader_elect
    assert (flags.lease_namespace, flags.lease_name) == ("tandem-system", "tandem-operator")


def test_images_are_values() -> None:
    pinned = container(f"--set=image.repository=hub:5000/t/op,image.digest=sha256:{'a' * 64},engineImage.tag=v2")
    assert pinned["image"] == f"hub:5000/t/op@sha256:{'a' * 64}"
    flags = parse(OperatorFlags, pinned["args"][1:])
    assert (flags.image, flags.engine_image) == (pinned["image"], "tandem-runtime:v2")


@pytest.mark.parametrize("tag", ["1", "20261123", '"1.10"'])
def test_a_tag_may_look_like_a_number(tag: str, tmp_path: Path) -> None:
    """Symptom: --set image.tag=1 was refused; in a values file 20261123 is the float 2.0261123e+07."""
    values = tmp_path / "values.yaml"
    values.write_text(f"image: {{tag: {tag}}}\n")
    for argv in (f"--values={values}", f"--set=image.tag={tag.strip(chr(34))}"):
        assert container(argv)["image"] == "tandem-operator:" + tag.strip('"')


def test_pull_secrets_are_names_or_references() -> None:
    pod = deployment("--set=imagePullSecrets[0]=one,imagePullSecrets[1].name=two")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


def test_labels_of_a_user_are_everywhere_and_never_in_the_place_of_ours() -> None:
    plain, monitors = deployment(), "--set=monitoring.podMonitor=true,monitoring.prometheusRule=true"
    labelled = [m for m in render(*VALUE_SETS["labels"], monitors) if m["kind"] != "CustomResourceDefinition"]
    for manifest in labelled:
        monitor = manifest["kind"] in ("PodMonitor", "PrometheusRule")
        assert manifest["metadata"]["labels"]["team"] == ("metrics" if monitor else "ml"), manifest["metadata"]
    (made,) = of_kind(labelled, "Deployment")
    assert made["spec"]["selector"] == plain["spec"]["selector"]
    expected = plain["spec"]["template"]["metadata"]["labels"] | {"team": "serving"}
    assert made["spec"]["template"]["metadata"]["labels"] == expected


def test_names_that_are_numbers_stay_text() -> None:
    named = ("--namespace=456", "--set-string=nameOverride=7")
    done = run("template", "123", str(CHART), *named, f"--kube-version={KUBERNETES}")
    for manifest in filter(None, yaml.safe_load_all(done.stdout)):
        if manifest["kind"] != "CustomResourceDefinition":
            assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"
            assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "7"
            assert manifest["metadata"].get("namespace", "456") == "456"


def test_namespaces_may_look_like_numbers(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("watchNamespaces: [7, 20261123, team]\n")
    for argv in (f"--values={values}", "--set=watchNamespaces={7,20261123,team}"):
        watched = [a for a in container(argv)["args"] if a.startswith("--namespace=")]
        assert watched == ["--namespace=7", "--namespace=20261123", "--namespace=team"]
        bound = {m["metadata"]["namespace"] for m in of_kind(render(argv), "RoleBinding")}
        assert bound == {"7", "20261123", "team", "tandem-system"}


def test_operator_pod_is_locked_down() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (only,) = pod["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert only["resources"]["requests"]
    assert only["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert only["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_disruption_budget_only_with_a_second_pod() -> None:
    assert not of_kind(render(), "PodDisruptionBudget")
    (budget,) = of_kind(render("--set=replicas=2"), "PodDisruptionBudget")
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_crd_is_upgraded_with_the_chart_and_survives_it() -> None:
    """Symptom elsewhere: helm never upgrades a chart's crds/ folder; a templated CRD takes all services with it."""
    (rendered,) = of_kind(render(), "CustomResourceDefinition")
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert rendered == crd()
    assert not of_kind(render("--set=crds.install=false"), "CustomResourceDefinition")
    assert not (CHART / "crds").exists()


def test_presets_reach_the_operator_and_restart_it(tmp_path: Path) -> None:
    argv = VALUE_SETS["own preset"]
    config = operator_config(*argv)
    file = tmp_path / "presets.yaml"
    file.write_text(config["data"]["presets.yaml"])
    mine = presets.load(file)["Mine"]
    assert (mine.max_model_len, mine.decode.cpu) == (4096, "4")
    mounts = {mount["name"]: mount["mountPath"] for mount in container(*argv)["volumeMounts"]}
    assert parse(OperatorFlags, container(*argv)["args"][1:]).presets == f"{mounts['config']}/presets.yaml"
    annotations = [deployment(*one)["spec"]["template"]["metadata"]["annotations"] for one in ([], argv)]
    assert annotations[0]["checksum/config"] != annotations[1]["checksum/config"]


@pytest.mark.parametrize(("path", "model"), [("presets", Preset), ("platform", Platform)])
def test_schema_knows_every_field_of_what_the_operator_reads(path: str, model: type[BaseModel]) -> None:
    """Symptom: presets learned of yarn, and the chart refused a preset that had it."""
    values = json.loads((CHART / "values.schema.json").read_text())
    compare(values["properties"][path], model, values["$defs"])


def compare(schema: Any, model: type[BaseModel], definitions: Any) -> None:
    for part in (schema, schema.get("additionalProperties")):
        if isinstance(part, dict):
            schema = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
    assert schema["properties"].keys() == {field.alias for field in model.model_fields.values()}
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                compare(schema["properties"][field.alias], inner, definitions)


def test_platform_reaches_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"

    def given(*argv: str) -> Platform:
        file.write_text(operator_config(*argv)["data"]["platform.yaml"])
        return platform.load(file)

    assert given() == Platform()
    volcengine = given(*VALUE_SETS["Volcengine"])
    assert volcengine.rdma is not None
    assert volcengine.rdma.resource_name == "vke.volcengine.com/rdma"
    assert volcengine.monitor_labels == {"volcengine.vmp": "true"}
    assert (volcengine.network, volcengine.load_balancer.load_balancer_class) == ("VPC", "volcengine.com/clb")


def test_default_values_know_no_cloud() -> None:
    values = (CHART / "values.yaml").read_text().replace("values-volcengine.yaml", "")
    assert "volc" not in values.lower()
    assert "volc" not in str([m for m in render() if m["kind"] != "CustomResourceDefinition"]).lower()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("replica=2", "replica"),
        ("replicas=two", "replicas"),
        ("image.repository=hub/op:v1", "image/repository"),
        ("image.tag=v1@sha256", "image/tag"),
        ("operator.logLevel=loud", "logLevel"),
        ("presets.Mine.uri=hf://a/b", "presets/Mine"),
        ("runAsUser=0", "runAsUser"),
        ("platform.rdma.gidIndex=3", "resourceName"),
        ("platform.zone=b", "zone"),
    ],
)
def test_wrong_values_are_refused_by_name(value: str, says: str) -> None:
    done = run("template", "tandem", str(CHART), f"--set={value}")
    assert done.returncode != 0
    assert says in done.stderr


def test_notes_show_commands_that_exist() -> None:
    done = run("install", "tandem", str(CHART), "--dry-run=client", "--namespace=tandem-system")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "rollout status deployment/tandem-operator" in notes
    assert (CHART.parents[1] / "examples/qwen3-32b.yaml").is_file()
