"""Several releases in one cluster, each for its namespaces. Helm installs them, and their operators run as processes
with the tokens of the releases' ServiceAccounts and the arguments of the releases' Deployments."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from devcluster import Cluster, ClusterError
from tests.integration.api_proxy import ApiProxy, Call
from tests.integration.charts.conftest import CHART, Helm, Shard, ShardOf
from tests.integration.conftest import make_namespace
from tests.integration.faults import Fault
from tests.integration.finetune_operator.kubelet import Kubelet, living_node
from tests.integration.finetune_operator.operator_process import OperatorProcess
from tests.integration.jobs import Job, manifest
from tests.integration.kube import JOBS, Kube, RefusedError
from tests.integration.waiting import wait_for

READY = (200, "ok")
REFUSALS_UNTIL_KOPF_GIVES_UP = 9


@dataclass(frozen=True)
class Running:
    """A release whose operator runs. `proxy` sees every request of this operator."""

    shard: Shard
    proxy: ApiProxy
    operator: OperatorProcess
    kube: Kube
    """The API server, as the operator."""

    def namespaces_of(self, calls: list[Call]) -> set[str]:
        found = (re.search(r"/namespaces/([^/]+)/", call.path) for call in calls)
        return {match[1] for match in found if match}


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, installed: str) -> Kube:
    return Kube(control_plane.kubeconfig)


@pytest.fixture(scope="module")
def kubelet(control_plane: Cluster, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    with living_node(control_plane.kubeconfig):
        yield Kubelet(kube, tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="module")
def run(
    control_plane: Cluster, kube: Kube, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Shard], Running]]:
    """Runs the operator of a release."""
    started: list[Running] = []

    def start(shard: Shard) -> Running:
        system = f"/api/v1/namespaces/{shard.system}/serviceaccounts/{shard.account}/token"
        token = kube.create(system, {"spec": {"audiences": []}})["status"]["token"]
        deployment = kube.get(f"/apis/apps/v1/namespaces/{shard.system}/deployments/{shard.account}")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        arguments = [argument for argument in container["args"] if "bind-address" not in argument]
        proxy = ApiProxy(kube.server, kube.authority)
        operator = OperatorProcess(tmp_path_factory.mktemp(shard.release), proxy.address, token, arguments)
        running = Running(shard, proxy, operator, Kube(control_plane.kubeconfig, token))
        started.append(running)
        operator.start()
        operator.wait_until_ready()
        return running

    yield start
    for running in started:
        running.operator.stop()
        running.proxy.close()


@pytest.fixture(scope="module")
def first(shard_of: ShardOf, run: Callable[[Shard], Running]) -> Running:
    return run(shard_of("first", "one", "two"))


@pytest.fixture(scope="module")
def second(shard_of: ShardOf, run: Callable[[Shard], Running]) -> Running:
    return run(shard_of("second", "one"))


def test_each_operator_runs_the_jobs_of_its_namespaces_and_touches_no_others(
    kube: Kube, kubelet: Kubelet, first: Running, second: Running
) -> None:
    unserved = make_namespace(kube)
    stranger = Job.create(kube, unserved, manifest())
    jobs = [
        Job.create(kube, namespace, manifest()) for running in (first, second) for namespace in running.shard.namespaces
    ]
    for job in jobs:
        kubelet.play(job.namespace, job.is_complete)

    for running in (first, second):
        assert running.namespaces_of(running.proxy.calls) == set(running.shard.namespaces)
        assert [call for call in running.proxy.calls if call.status in (401, 403)] == []
    assert stranger.children() == {}
    assert "state" not in stranger.status()


@pytest.mark.thorough
def test_an_operator_takes_up_after_a_restart_only_what_is_its_own(
    kube: Kube, kubelet: Kubelet, first: Running, second: Running
) -> None:
    first.operator.stop()
    second.operator.stop()
    mine = [Job.create(kube, namespace, manifest("later")) for namespace in first.shard.namespaces]
    theirs = Job.create(kube, second.shard.namespaces[0], manifest("later"))
    first.operator.start()
    for job in mine:
        kubelet.play(job.namespace, job.is_complete)
    assert theirs.children() == {}
    second.operator.start()
    kubelet.play(theirs.namespace, theirs.is_complete)


def test_an_operator_cannot_read_or_write_in_the_namespace_of_another(
    kube: Kube, first: Running, second: Running
) -> None:
    namespace = second.shard.namespaces[0]
    job = Job.create(kube, namespace, manifest("theirs"))
    requests: list[Callable[[], object]] = [
        lambda: first.kube.list(JOBS.format(namespace)),
        lambda: first.kube.list(f"/api/v1/namespaces/{namespace}/pods"),
        lambda: first.kube.apply(f"{job.path}/status", {"status": {"state": "Failed"}}),
        lambda: first.kube.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "any"}}),
        lambda: first.kube.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "any"}}),
        lambda: first.kube.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/any"),
    ]
    for request in requests:
        with pytest.raises(RefusedError) as refused:
            request()
        assert refused.value.status == 403


def test_jobs_of_one_release_with_the_same_output_are_still_told_apart(
    kube: Kube, kubelet: Kubelet, first: Running
) -> None:
    one, two = first.shard.namespaces
    output = {"uri": "s3://acme-models/shared"}
    winner = Job.create(kube, one, manifest("winner", output=output))
    loser = Job.create(kube, two, manifest("loser", output=output))
    wait_for("the winner to request a GPU", lambda: _steps(winner, kubelet), lambda steps: "a1" in steps)
    kubelet.play(two, lambda: loser.ready().get("reason") == "OutputOccupied")
    kubelet.play(one, winner.is_complete)


def _steps(job: Job, kubelet: Kubelet) -> set[str]:
    kubelet.advance(job.namespace, f"{job.selector},finetune.dev/step=preflight")
    return set(job.batch_jobs())


def test_a_second_release_needs_to_be_told_that_the_cluster_wide_objects_exist(helm: Helm, installed: str) -> None:
    with pytest.raises(ClusterError, match=r"ClusterRole.*finetune-trainer.*exists and cannot be imported"):
        helm("install", "another", str(CHART), "--namespace", installed, "--set", f"watchNamespaces={{{installed}}}")


def test_helm_refuses_a_namespace_that_another_release_has(helm: Helm, first: Running, installed: str) -> None:
    namespace = first.shard.namespaces[1]
    values = f"clusterResources.create=false,watchNamespaces={{{namespace}}}"
    with pytest.raises(ClusterError, match=f'Role "finetune-operator" in namespace "{namespace}" exists'):
        helm("install", "intruder", str(CHART), "--namespace", installed, "--set", values)


def test_helm_names_a_namespace_that_does_not_exist(helm: Helm, installed: str) -> None:
    values = "clusterResources.create=false,watchNamespaces={tickts}"
    with pytest.raises(ClusterError, match='namespaces "tickts" not found'):
        helm("install", "misspelled", str(CHART), "--namespace", installed, "--set", values)
    helm("uninstall", "misspelled", "--namespace", installed)


def test_the_end_of_one_release_leaves_the_others_what_they_share(
    helm: Helm, kube: Kube, kubelet: Kubelet, shard_of: ShardOf, second: Running
) -> None:
    ended = shard_of("ended", "one")
    helm("uninstall", ended.release, "--namespace", ended.system)
    job = Job.create(kube, second.shard.namespaces[0], manifest("after-the-end"))
    kubelet.play(job.namespace, job.is_complete)


@pytest.mark.thorough
def test_a_namespace_moves_to_another_release_with_its_running_jobs(
    helm: Helm, kube: Kube, kubelet: Kubelet, shard_of: ShardOf, run: Callable[[Shard], Running]
) -> None:
    old, new = (run(shard_of(name, "own")) for name in ("old", "new"))
    (moved,), (kept,) = old.shard.namespaces, new.shard.namespaces
    left = make_namespace(kube)
    old.shard.upgrade(helm, (moved, left))
    job = Job.create(kube, moved, manifest())
    job.wait_for_reason("PreflightPending")
    children = job.children()

    old.shard.upgrade(helm, (left,))
    new.shard.upgrade(helm, (kept, moved))
    old.operator.stop()
    new.operator.stop()
    successor = run(new.shard)
    kubelet.play(moved, job.is_complete)
    assert children.items() <= job.children().items()
    assert moved in successor.namespaces_of(successor.proxy.writes(job.name))


@pytest.mark.soak
def test_a_deleted_namespace_does_not_keep_the_operator_from_the_others(
    helm: Helm, kube: Kube, kubelet: Kubelet, shard_of: ShardOf, run: Callable[[Shard], Running]
) -> None:
    running = run(shard_of("bereft", "kept", "deleted"))
    kept, deleted = running.shard.namespaces
    kube.delete(f"/api/v1/namespaces/{deleted}")
    wait_for("the namespace to be deleted", lambda: kube.find(f"/api/v1/namespaces/{deleted}") is None)
    watch = JOBS.format(deleted)
    running.proxy.break_watches({watch: Fault.CUT_BEFORE_HEADERS})
    running.proxy.mend()
    wait_for(
        "the watch to be refused again and again",
        lambda: sum(call.path == watch and call.status == 403 for call in running.proxy.calls),
        lambda count: count > REFUSALS_UNTIL_KOPF_GIVES_UP,
        timeout=180,
    )
    assert running.operator.is_running
    assert running.operator.probe("/healthz") == READY
    job = Job.create(kube, kept, manifest())
    kubelet.play(kept, job.is_complete)

    kube.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": deleted}})
    helm("upgrade", running.shard.release, str(CHART), "--namespace", running.shard.system, "--reuse-values")
    again = Job.create(kube, deleted, manifest())
    kubelet.play(deleted, again.is_complete, timeout=90)
