"""One `helm install` gives a running operator's objects, a valid profile, and a clear word where a value is wrong."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from devcluster import ClusterError
from finetune_api import names

CHART = str(Path(__file__).parents[3] / "charts" / "finetune-operator")
PROFILES = (names.GROUP, names.VERSION, names.PROFILES)
Helm = Callable[..., str]


def rendered(helm: Helm, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart renders to, by kind and name."""
    return {(o["kind"], o["metadata"]["name"]): o for o in objects_of(helm, *arguments)}


def objects_of(helm: Helm, *arguments: str) -> list[dict[str, Any]]:
    """What the chart renders to."""
    return [o for o in yaml.safe_load_all(helm("template", "finetune-operator", CHART, *arguments)) if o]


def notes(helm: Helm, *arguments: str) -> str:
    """What Helm prints after the installation."""
    output = helm("install", "finetune-operator", CHART, "--dry-run=client", *arguments)
    return output.partition("NOTES:")[2]


FURTHER = ["--set", "clusterResources.create=false,watchNamespaces={tickets,search}"]
"""A release beside another one."""
CLUSTER_WIDE = {
    ("ClusterRole", "finetune-trainer"),
    ("ClusterRole", "finetune-operator-view"),
    ("ClusterRole", "finetune-operator-edit"),
    ("ClusterRole", "finetune-operator-profiles"),
    ("ClusterRoleBinding", "finetune-operator-profiles"),
    ("ValidatingAdmissionPolicy", "finetune-trainer"),
    ("ValidatingAdmissionPolicyBinding", "finetune-trainer"),
    ("FineTuneProfile", "default"),
}


def test_helm_lint_reports_no_problem(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", CHART, "--strict")


def test_one_install_creates_the_definitions_and_a_valid_profile(installed: str, api: client.ApiClient) -> None:
    profile = client.CustomObjectsApi(api).get_cluster_custom_object(*PROFILES, "default")
    assert profile["spec"]["trainer"] == {
        "image": "finetune-trainer:0.1.0",
        "imagePullPolicy": "IfNotPresent",
        "allowCPU": False,
    }


def test_the_operators_pod_is_accepted_under_the_restricted_standard(installed: str, api: client.ApiClient) -> None:
    core, deadline = client.CoreV1Api(api), time.monotonic() + 60
    while not (pods := core.list_namespaced_pod(installed).items):
        events = [event.message for event in core.list_namespaced_event(installed).items]
        refused = [message for message in events if "violates PodSecurity" in (message or "")]
        assert not refused, refused[0]
        assert time.monotonic() < deadline, f"no pod was created: {events}"
    assert [pod.status.phase for pod in pods] == ["Pending"]


def test_an_upgrade_applies_every_value(helm: Helm, installed: str, api: client.ApiClient, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        """
        image: {repository: registry.example.com/ml/finetune-operator, pullPolicy: Always}
        trainerImage: {repository: trainer, tag: "1.2", pullPolicy: Never}
        profile:
          allowCPU: true
          gpuTypes:
            - name: h100
              resourceName: nvidia.com/gpu
              nodeSelector: {nvidia.com/gpu.product: H100}
              tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
          storages:
            - {buckets: [acme-*], endpoint: "https://minio.storage.svc:9000", credentialsSecretName: s3-credentials}
            - {buckets: ["*"], region: eu-central-1}
        logLevel: DEBUG
        imagePullSecrets: [{name: registry}]
        podAnnotations: {example.com/logs: "json"}
        nodeSelector: {kubernetes.io/os: linux}
        tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
        affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
        """
    )
    try:
        helm("upgrade", "finetune-operator", CHART, "--namespace", installed, "--values", str(values))
        profile = client.CustomObjectsApi(api).get_cluster_custom_object(*PROFILES, "default")
        deployment = client.AppsV1Api(api).read_namespaced_deployment("finetune-operator", installed)
    finally:
        helm("rollback", "finetune-operator", "1", "--namespace", installed)
    assert profile["spec"]["trainer"] == {"image": "trainer:1.2", "imagePullPolicy": "Never", "allowCPU": True}
    assert [gpu["name"] for gpu in profile["spec"]["gpuTypes"]] == ["h100"]
    assert [storage["region"] for storage in profile["spec"]["storages"]] == ["us-east-1", "eu-central-1"]
    (container,) = deployment.spec.template.spec.containers
    assert container.image == "registry.example.com/ml/finetune-operator:0.1.0"
    assert "--log-level=DEBUG" in container.args


def test_a_digest_is_used_instead_of_the_tag(helm: Helm) -> None:
    digest = "sha256:" + "ab" * 32
    objects = rendered(helm, "--set", f"image.digest={digest},image.tag=ignored,trainerImage.digest={digest}")
    pod = objects["Deployment", "finetune-operator"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"finetune-operator@{digest}"
    assert objects["FineTuneProfile", "default"]["spec"]["trainer"]["image"] == f"finetune-trainer@{digest}"


def test_no_profile_is_installed_if_the_values_disable_it(helm: Helm) -> None:
    kinds = {kind for kind, _ in rendered(helm, "--set", "profile.create=false")}
    assert "FineTuneProfile" not in kinds
    assert "Deployment" in kinds


def test_a_release_without_namespaces_serves_the_whole_cluster(helm: Helm) -> None:
    objects = rendered(helm)
    assert {kind for kind, _ in objects}.isdisjoint({"Role", "RoleBinding"})
    arguments = objects["Deployment", "finetune-operator"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [argument for argument in arguments if "namespaces" in argument] == []


def test_a_release_with_namespaces_has_one_role_in_each_and_may_elsewhere_only_read_what_has_no_namespace(
    helm: Helm,
) -> None:
    objects = objects_of(helm, "--namespace", "system", "--set", "watchNamespaces={tickets,search}")
    roles = {o["metadata"]["namespace"]: o["rules"] for o in objects if o["kind"] == "Role"}
    bindings = {o["metadata"]["namespace"]: o for o in objects if o["kind"] == "RoleBinding"}
    whole_cluster = rendered(helm)["ClusterRole", "finetune-operator"]["rules"]
    assert set(roles) == set(bindings) == {"tickets", "search"}
    own = rendered(helm, *FURTHER)["ClusterRole", "finetune-operator"]["rules"]
    assert own == [
        {"apiGroups": ["finetune.dev"], "resources": ["finetuneprofiles"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        {"apiGroups": ["storage.k8s.io"], "resources": ["volumeattachments"], "verbs": ["list"]},
    ]
    for namespace, rules in roles.items():
        assert [rule for rule in whole_cluster if rule not in rules] == [
            *own,
            {
                "apiGroups": ["apiextensions.k8s.io"],
                "resources": ["customresourcedefinitions"],
                "verbs": ["get", "list", "watch"],
            },
        ]
        assert bindings[namespace]["subjects"] == [
            {"kind": "ServiceAccount", "name": "finetune-operator", "namespace": "system"}
        ]
    (deployment,) = (o for o in objects if o["kind"] == "Deployment")
    assert "--namespaces=tickets,search" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]


def test_only_one_release_has_the_objects_of_the_whole_cluster(helm: Helm) -> None:
    alone, further = set(rendered(helm)), set(rendered(helm, *FURTHER))
    assert alone >= CLUSTER_WIDE
    assert CLUSTER_WIDE.isdisjoint(further)
    assert {name for kind, name in further if kind.startswith("Cluster")} == {"finetune-operator"}


def test_the_notes_say_which_namespaces_are_served_and_what_another_release_has_to_have(helm: Helm) -> None:
    assert "namespaces" not in notes(helm)
    first = notes(helm, "--set", "watchNamespaces={tickets,search}")
    assert "of these namespaces only: tickets, search." in first
    assert "clusterResources.create=false" in first
    assert "FineTuneJobs use the FineTuneProfile default" in first
    further = notes(helm, *FURTHER)
    assert "kubectl get clusterrole/finetune-trainer validatingadmissionpolicy/finetune-trainer" in further
    assert "No FineTuneProfile was created, because clusterResources.create is false." in further


def test_the_operator_gets_its_limits_and_serves_metrics(helm: Helm) -> None:
    def container(*values: str) -> dict[str, Any]:
        (found,) = rendered(helm, *values)["Deployment", "finetune-operator"]["spec"]["template"]["spec"]["containers"]
        return dict(found)

    usual, limited = container(), container("--set", "workers=3,api.qps=50,api.burst=7,metrics.enabled=false")
    assert {"--workers=8", "--metrics-bind-address=0.0.0.0:8081"} <= set(usual["args"])
    assert {port["name"]: port["containerPort"] for port in usual["ports"]} == {"health": 8080, "metrics": 8081}
    assert not [argument for argument in usual["args"] if "api" in argument]
    assert {"--workers=3", "--api-qps=50", "--api-burst=7"} <= set(limited["args"])
    assert "metrics" not in str(limited["args"]) + str(limited["ports"])


def test_a_pod_monitor_selects_the_operators_pod(helm: Helm) -> None:
    assert "PodMonitor" not in {kind for kind, _ in rendered(helm)}
    on = ["--set", "metrics.podMonitor.enabled=true,metrics.podMonitor.labels.release=prometheus"]
    objects = rendered(helm, *on)
    monitor = objects["PodMonitor", "finetune-operator"]
    pod = objects["Deployment", "finetune-operator"]["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


def test_two_operators_never_run_at_the_same_time(helm: Helm) -> None:
    deployment = rendered(helm)["Deployment", "finetune-operator"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "image.repositry=typo"], "repositry"),
        (["--set", "logLevel=LOUD"], "logLevel"),
        (["--set", "profile.storages=null"], "storages"),
        (["--kube-version", "1.30.0"], "1.31"),
        (["--set", "watchNamespaces={tickets,tickets}"], "watchNamespaces.*equal"),
        (["--set", "watchNamespaces=tickets"], "watchNamespaces.*want array"),
        (["--set", "clusterResources.create=false"], "watchNamespaces is empty, .* Name its namespaces"),
    ],
)
def test_wrong_values_fail_before_anything_is_installed(helm: Helm, arguments: list[str], sentence: str) -> None:
    with pytest.raises(ClusterError, match=sentence):
        helm("template", "finetune-operator", CHART, *arguments)


def test_a_profile_the_api_server_refuses_ends_the_install_with_the_field(helm: Helm, installed: str) -> None:
    with pytest.raises(ClusterError, match="resorceName: field not declared in schema"):
        helm(
            "upgrade", "finetune-operator", CHART, "--namespace", installed,
            "--set", "profile.gpuTypes[0].name=gpu,profile.gpuTypes[0].resorceName=typo",
        )  # fmt: skip
