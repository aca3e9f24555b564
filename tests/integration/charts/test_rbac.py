"""What operator, trainers and tenants may do is exactly what is written here: every resource the API server knows is
asked for with every verb, so that a right nobody thought of shows up as a difference."""

import time
from collections.abc import Iterator

import pytest
from kubernetes import client

from finetune_api import names
from tests.integration.charts.conftest import CHART, Helm, Shard, ShardOf, api_with, token_of
from tests.integration.waiting import wait_for

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
Right = tuple[str, str]
"""A verb and a resource, such as ("get", "finetunejobs/status.finetune.dev")."""


def rights(verbs: str, *resources: str) -> set[Right]:
    return {(verb, resource) for verb in verbs.split() for resource in resources}


OPERATOR = (
    rights("get list watch", "finetunejobs.finetune.dev")
    | rights("get patch", "finetunejobs/status.finetune.dev")
    | rights("get list watch create delete", "jobs.batch")
    | rights("get list watch", "pods")
    | rights("get list watch create", "serviceaccounts", "rolebindings.rbac.authorization.k8s.io")
    | rights("get create delete", "configmaps", "services", "networkpolicies.networking.k8s.io")
    | rights("create list", "events")
    | rights("get", "persistentvolumeclaims")
    | rights("create", "localsubjectaccessreviews.authorization.k8s.io")
)
"""What the operator may do in each namespace that it serves."""
PROFILES = rights("get list watch", "finetuneprofiles.finetune.dev")
CLUSTER = PROFILES | rights("get", "nodes") | rights("list", "volumeattachments.storage.k8s.io")
"""What every operator may do outside the namespaces that it serves."""
DEFINITIONS = rights("get list watch", "customresourcedefinitions.apiextensions.k8s.io")
TRAINER = rights("get patch", "finetunejobs/status.finetune.dev")
VIEWER = rights("get list watch", "finetunejobs.finetune.dev") | rights("get", "finetunejobs/status.finetune.dev")
EDITOR = VIEWER | rights("create update patch delete deletecollection", "finetunejobs.finetune.dev")


class Authorizer:
    """Asks the API server who may do what."""

    def __init__(self, api: client.ApiClient) -> None:
        self._reviews, self._api = client.AuthorizationV1Api(api), api

    def allows(self, user: str, groups: list[str], right: Right, namespace: str | None, name: str = "") -> bool:
        verb, (resource, _, group) = right[0], right[1].partition(".")
        resource, _, subresource = resource.partition("/")
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
            "name": name,
        }
        review = {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}}
        return bool(self._reviews.create_subject_access_review(review).status.allowed)

    def account_allows(self, account: str, of: str, right: Right, namespace: str | None, name: str = "") -> bool:
        """As `allows`, for a ServiceAccount of the namespace `of`, without what every ServiceAccount may."""
        user = f"system:serviceaccount:{of}:{account}"
        return self.allows(user, ["system:serviceaccounts", f"system:serviceaccounts:{of}"], right, namespace, name)

    def resources(self) -> Iterator[str]:
        """Every resource and subresource the API server serves, as RESOURCE or RESOURCE.GROUP."""
        for resource in client.CoreV1Api(self._api).get_api_resources().resources:
            yield resource.name
        for group in client.ApisApi(self._api).get_api_versions().groups:
            path = f"/apis/{group.preferred_version.group_version}"
            answer = self._api.call_api(*self._api.param_serialize("GET", path, auth_settings=["BearerToken"]))
            served = self._api.deserialize(answer.read().decode(), "V1APIResourceList", "application/json")
            yield from (f"{resource.name}.{group.name}" for resource in served.resources)


@pytest.fixture(scope="module")
def authorizer(api: client.ApiClient) -> Authorizer:
    return Authorizer(api)


@pytest.fixture(scope="module")
def everything(installed: str, authorizer: Authorizer) -> set[Right]:
    return rights(" ".join(VERBS), *authorizer.resources())


def test_the_operator_may_do_what_it_needs_in_every_namespace_and_nothing_else(
    installed: str, authorizer: Authorizer, everything: set[Right]
) -> None:
    allowed = {right for right in everything if authorizer.account_allows("finetune-operator", installed, right, None)}
    assert allowed == OPERATOR | CLUSTER | DEFINITIONS
    assert ("get", "secrets") in everything, "the question was asked"


def test_the_operator_may_name_jobs_as_owners_and_bind_the_trainers_role_alone(
    installed: str, authorizer: Authorizer
) -> None:
    def allows(verb: str, resource: str, name: str = "") -> bool:
        return authorizer.account_allows("finetune-operator", installed, (verb, resource), None, name)

    assert allows("update", "finetunejobs/finalizers.finetune.dev")
    assert allows("bind", "clusterroles.rbac.authorization.k8s.io", names.TRAINER_SERVICE_ACCOUNT)
    assert not allows("bind", "clusterroles.rbac.authorization.k8s.io", "cluster-admin")
    assert not allows("bind", "clusterroles.rbac.authorization.k8s.io")
    assert not allows("escalate", "clusterroles.rbac.authorization.k8s.io", names.TRAINER_SERVICE_ACCOUNT)


def test_an_operator_of_some_namespaces_may_do_this_only_there_and_outside_only_read_profiles(
    shard: Shard, tenant: str, authorizer: Authorizer, everything: set[Right]
) -> None:
    def allowed(namespace: str | None) -> set[Right]:
        return {
            right for right in everything if authorizer.account_allows(shard.account, shard.system, right, namespace)
        }

    for namespace in shard.namespaces:
        assert allowed(namespace) == OPERATOR | CLUSTER
    for elsewhere in (None, tenant, shard.system):
        assert allowed(elsewhere) == CLUSTER


def test_an_operator_of_some_namespaces_binds_the_trainers_role_only_there(
    shard: Shard, tenant: str, authorizer: Authorizer
) -> None:
    bind = ("bind", "clusterroles.rbac.authorization.k8s.io")
    finalizers = ("update", "finetunejobs/finalizers.finetune.dev")

    def allows(right: Right, namespace: str | None, name: str = "") -> bool:
        return authorizer.account_allows(shard.account, shard.system, right, namespace, name)

    for namespace in shard.namespaces:
        assert allows(bind, namespace, names.TRAINER_SERVICE_ACCOUNT)
        assert not allows(bind, namespace, "cluster-admin")
        assert allows(finalizers, namespace)
    for elsewhere in (None, tenant, shard.system):
        assert not allows(bind, elsewhere, names.TRAINER_SERVICE_ACCOUNT)
        assert not allows(finalizers, elsewhere)


def test_an_operator_may_list_kueues_workloads_where_its_release_has_kueue_enabled_and_do_nothing_else_with_them(
    shard_of: ShardOf, helm: Helm, tenant: str, authorizer: Authorizer
) -> None:
    shard = shard_of("queued", "one")
    (namespace,) = shard.namespaces

    def allowed(namespace: str) -> set[Right]:
        every = rights(" ".join(VERBS), "workloads.kueue.x-k8s.io", "workloads/status.kueue.x-k8s.io")
        return {right for right in every if authorizer.account_allows(shard.account, shard.system, right, namespace)}

    assert allowed(namespace) == set()
    helm(
        *("upgrade", shard.release, str(CHART), "--namespace", shard.system, "--reuse-values"),
        *("--set", "kueue.enabled=true"),
    )
    listing = rights("list", "workloads.kueue.x-k8s.io")
    wait_for("the right to list Workloads", lambda: allowed(namespace), lambda found: found == listing)
    assert allowed(tenant) == set()


def test_the_right_to_bind_in_a_role_is_enough_in_its_namespace_if_the_trainers_may_do_more_than_the_operator(
    shard_of: ShardOf, api: client.ApiClient, authorizer: Authorizer
) -> None:
    shard = shard_of("binder", "one")
    (namespace,), rbac = shard.namespaces, client.RbacAuthorizationV1Api(api)
    role = rbac.read_namespaced_role("finetune-operator", namespace)
    role.rules = [rule for rule in role.rules if "finetunejobs/status" not in rule.resources]
    rbac.replace_namespaced_role("finetune-operator", namespace, role)
    write_status = ("patch", "finetunejobs/status.finetune.dev")
    wait_for(
        "the operator to lose what a trainer may do",
        lambda: not authorizer.account_allows(shard.account, shard.system, write_status, namespace),
    )
    operator = client.RbacAuthorizationV1Api(api_with(api, token_of(shard.account, shard.system, api)))

    def bind(role: str) -> None:
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        operator.create_namespaced_role_binding(namespace, {"metadata": {"name": role}, "roleRef": reference})

    bind(names.TRAINER_SERVICE_ACCOUNT)
    with pytest.raises(client.ApiException, match="attempting to grant RBAC permissions not currently held"):
        bind("view")


def test_a_trainer_may_patch_statuses_in_its_namespace_and_nothing_else(
    tenant: str, authorizer: Authorizer, everything: set[Right]
) -> None:
    account = names.TRAINER_SERVICE_ACCOUNT
    assert {right for right in everything if authorizer.account_allows(account, tenant, right, tenant)} == TRAINER
    assert not {right for right in TRAINER if authorizer.account_allows(account, tenant, right, "default")}
    finalizers = ("update", "finetunejobs/finalizers.finetune.dev")
    assert not authorizer.account_allows(account, tenant, finalizers, tenant), (
        "the policy would take it for an operator"
    )


@pytest.mark.parametrize(("role", "expected"), [("view", VIEWER), ("edit", EDITOR), ("admin", EDITOR)])
def test_a_tenants_role_covers_finetunejobs_but_never_their_status(
    role: str, expected: set[Right], tenant: str, api: client.ApiClient, authorizer: Authorizer, everything: set[Right]
) -> None:
    user = f"{role}-of-{tenant}"
    client.RbacAuthorizationV1Api(api).create_namespaced_role_binding(
        tenant,
        {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        },
    )
    deadline = time.monotonic() + 30
    while not authorizer.allows(user, [], ("get", "finetunejobs.finetune.dev"), tenant):
        assert time.monotonic() < deadline, "the controller-manager did not aggregate the chart's roles"
    ours = {right for right in everything if right[1].endswith(".finetune.dev")}
    assert {right for right in ours if authorizer.allows(user, [], right, tenant)} == expected
    finalizers = ("update", "finetunejobs/finalizers.finetune.dev")
    assert not authorizer.allows(user, [], finalizers, tenant), "a tenant could give it to a pod"


def test_everyone_who_is_signed_in_may_read_profiles_and_nobody_else(
    installed: str, authorizer: Authorizer, everything: set[Right]
) -> None:
    ours = {right for right in everything if right[1].endswith(".finetune.dev")}
    signed_in = {right for right in ours if authorizer.allows("anyone", ["system:authenticated"], right, None)}
    assert signed_in == PROFILES
    assert not {
        right for right in ours if authorizer.allows("system:anonymous", ["system:unauthenticated"], right, None)
    }
