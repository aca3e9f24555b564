"""What helps a pod that waits follows from the cluster's words. The words are those of Kubernetes 1.36 and earlier."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.observed.causes.remedies import (
    AGAIN_BY_ITSELF,
    CORRECT_IT,
    TAKE_OVER,
    of_no_node,
    of_refusal,
    of_refused_object,
    of_start,
    while_waiting,
)

NONE = "0/1 nodes are available"
IN_USE = "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
NEVER = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
GPU = "1 Insufficient nvidia.com/gpu."
IN_ONE_POD = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
NODES = {
    f"{NONE}: {GPU} {IN_USE}": "wait until another pod frees its nvidia.com/gpu, or add a node with one",
    f"{NONE}: {GPU} no new claims to deallocate, {IN_USE}": "wait until another pod frees its nvidia.com/gpu",
    f"{NONE}: {GPU} {NEVER}": "add a node with nvidia.com/gpu, or correct resourceName of gpuTypes",
    f"{NONE}: 1 Insufficient amd.com/gpu. {NEVER}": "add a node with amd.com/gpu",
    f"{NONE}: 1 Insufficient cpu. {IN_USE}": "free or add CPU; for the training pod, spec.compute.cpu can be lowered",
    f"{NONE}: 1 Insufficient memory. {NEVER}": "spec.compute.memory can be lowered",
    f"{NONE}: 1 Insufficient ephemeral-storage. {NEVER}": "free or add disk space",
    f"{NONE}: 1 Too many pods. {IN_USE}": "let the nodes run more pods",
    f"{NONE}: 1 node(s) had untolerated taint(s). {NEVER}": "remove the taint, make the node ready that has it, or add",
    f"{NONE}: 1 node(s) had untolerated taint {{gpu: true}}. {NEVER}": "or add its toleration to spec.gpuTypes",
    f"{NONE}: 1 node(s) didn't match Pod's node affinity/selector. {NEVER}": "correct nodeSelector in spec.gpuTypes",
    f"{NONE}: 1 node(s) were unschedulable. {NEVER}": "uncordon a node",
    f"{NONE}: 1 node(s) had volume node affinity conflict. {NEVER}": "let the pod run on the nodes of the volume",
    f"{NONE}: 1 node(s) didn't find available persistent volumes to bind. {NEVER}": "correct the claim that has no",
    f"{NONE}: 1 node(s) exceed max volume count. {NEVER}": "correct the volume",
    f"{NONE}: 1 {IN_ONE_POD}. {NEVER}": "wait until the pod ends that uses the same PersistentVolumeClaim",
    f"{NONE}: pod has unbound immediate PersistentVolumeClaims. {NEVER}": "The pod starts when the claim is bound.",
    f'{NONE}: persistentvolumeclaim "cache" not found. {NEVER}': "Create PersistentVolumeClaim cache.",
    f"{NONE}: 1 node(s) didn't satisfy something new. {NEVER}": "Correct what the scheduler names",
    "no nodes available to schedule pods": "Add a node to the cluster.",
    "Scheduling is blocked due to non-empty scheduling gates": "must remove it",
}


@pytest.mark.parametrize("said", NODES)
def test_a_pod_without_a_node_is_told_what_helps(said: str) -> None:
    assert NODES[said] in of_no_node(said)


def test_of_several_reasons_each_gets_its_remedy_once() -> None:
    said = (
        "0/4 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {a: b}, 1 node(s) had "
        f"untolerated taint {{c: d}}. {IN_USE}"
    )

    told = of_no_node(said)

    assert told.startswith(
        "What helps: wait until another pod frees its nvidia.com/gpu, or add a node with one; or remove"
    )
    assert told.count("toleration") == 1


PODS_ARE = 'pods "tickets-1a2b3c4d-a1-" is forbidden'
REFUSALS = {
    f"{PODS_ARE}: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4": (
        "Wait until other pods of the namespace end, or raise ResourceQuota gpus."
    ),
    f"{PODS_ARE}: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=0, "
    "limited: requests.nvidia.com/gpu=4": "The pod alone needs more than ResourceQuota gpus allows: raise the quota",
    f"{PODS_ARE}: exceeded quota: gpus, requested: cpu=500m,memory=8Gi, used: cpu=2,memory=1Gi, limited: "
    "cpu=2,memory=8Gi": "Wait until other pods of the namespace end, or raise ResourceQuota gpus.",
    f"{PODS_ARE}: exceeded quota: gpus, requested: cpu=500m,memory=9Gi, used: cpu=2,memory=1Gi, limited: "
    "cpu=2,memory=8Gi": "The pod alone needs more than ResourceQuota gpus allows",
    f"{PODS_ARE}: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0": (
        "The pod alone needs more than ResourceQuota none allows: raise the quota."
    ),
    f"{PODS_ARE}: failed quota: compute: must specify limits.cpu for: trainer": (
        "Add a LimitRange with a default for limits.cpu, because ResourceQuota compute demands it."
    ),
    f"{PODS_ARE}: maximum memory usage per Container is 1Gi, but limit is 8Gi": "Change the LimitRange",
    f"{PODS_ARE}: minimum cpu usage per Pod is 2, but request is 500m": "Change the LimitRange of the namespace",
    f'{PODS_ARE}: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false': (
        "correct the webhook or policy that changed it"
    ),
    f'{PODS_ARE}: error looking up service account team/mine: serviceaccount "mine" not found': (
        "Create ServiceAccount mine, or correct spec.compute.serviceAccountName in a new job."
    ),
    'Internal error occurred: failed calling webhook "pods.mesh.example": connection refused': (
        "Repair the service behind webhook pods.mesh.example."
    ),
    'admission webhook "images.example" denied the request: unsigned image': "Ask the owner of images.example",
    f"{PODS_ARE}: ValidatingAdmissionPolicy 'labels' with binding 'all' denied request: no team label": (
        "Ask the owner of labels"
    ),
    f'{PODS_ARE}: pod rejected: RuntimeClass "kata" not found': "Create it, or correct its name: in spec.pods of the",
    f"{PODS_ARE}: no PriorityClass with name urgent was found": "Create it, or correct its name: in spec.pods of the",
}


@pytest.mark.parametrize("said", REFUSALS)
def test_a_refusal_is_told_with_what_helps(said: str) -> None:
    assert REFUSALS[said] in of_refusal(said)


JOBS_ARE = 'jobs.batch "tickets-1a2b3c4d-a1" is forbidden'
REFUSED_OBJECTS = {
    f"{JOBS_ARE}: exceeded quota: few, requested: count/jobs.batch=1, used: count/jobs.batch=9, limited: 9": (
        "Delete objects of kind Job that the namespace no longer needs, or raise ResourceQuota few."
    ),
    'Internal error occurred: failed calling webhook "jobs.mesh.example": connection refused': (
        "Repair the service behind webhook jobs.mesh.example."
    ),
    'admission webhook "validate.kyverno.svc-fail" denied the request: \n\nresource Job/team/x was blocked': (
        "Ask the owner of validate.kyverno.svc-fail what objects of kind Job must have in this namespace."
    ),
    f"{JOBS_ARE}: ValidatingAdmissionPolicy 'labels' with binding 'all' denied request: no team label": (
        "Ask the owner of labels what objects of kind Job must have in this namespace."
    ),
    f'{JOBS_ARE}: User "system:serviceaccount:finetune:operator" cannot create resource "jobs" in API group "batch"': (
        "Give the ServiceAccount of the operator this permission: install the chart of this release again."
    ),
    'Job.batch "x" is invalid: spec.template.spec.tolerations[0].effect: Unsupported value: "Never"': (
        "Correct this value in the FineTuneProfile, or in the webhook or policy that has set it."
    ),
    "something new happened": "Correct that cause.",
}


@pytest.mark.parametrize("said", REFUSED_OBJECTS)
def test_a_refusal_of_an_object_that_is_no_pod_is_told_with_what_helps(said: str) -> None:
    assert of_refused_object("Job", said) == f"{REFUSED_OBJECTS[said]} {AGAIN_BY_ITSELF}"


def test_a_refusal_of_an_unknown_kind_speaks_for_itself() -> None:
    assert of_refusal("something new happened") == ""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('MountVolume.SetUp failed for volume "keys" : secret "s3-keys" not found', "Create Secret s3-keys."),
        ('MountVolume.SetUp failed for volume "ca" : configmap "ca" not found', "Create ConfigMap ca."),
        ("failed to reserve container name", CORRECT_IT),
    ],
)
def test_a_pod_that_cannot_start_is_told_what_is_missing(said: str, told: str) -> None:
    assert of_start(said).startswith(told)


@given(st.text())
def test_any_words_get_whole_sentences(said: str) -> None:
    for told in (of_no_node(f"{NONE}: {said}"), of_start(said), of_refusal(said), of_refused_object("Job", said)):
        assert told == "" or re.search(r"[.]$", told)


@pytest.mark.parametrize(
    ("remedy", "is_told"),
    [
        (of_no_node(f"{NONE}: 1 node(s) had untolerated taint {{gpu: true}}. {NEVER}"), True),
        (of_no_node(f"{NONE}: {GPU} {NEVER}"), True),
        (of_refusal("no PriorityClass with name batch was found"), True),
        (of_no_node(f"{NONE}: 1 Too many pods. {IN_USE}"), False),
        (of_no_node(f"{NONE}: {GPU} {IN_USE}"), False),
    ],
)
def test_a_waiting_pod_whose_profile_may_be_wrong_is_told_how_the_job_takes_over_a_correction(
    remedy: str, is_told: bool
) -> None:
    assert while_waiting(remedy) == (f"{remedy} {TAKE_OVER}" if is_told else remedy)
