"""What a training on several nodes needs beside its pods: an Indexed Job with one pod on each node, and the objects
through which the pods find each other.

Index 0 has rank 0. Its name in DNS is known before it exists, from the names of the Job and of the Service."""

from finetune_api import names
from finetune_api.spec.job import FineTuneJobSpec
from finetune_operator.decisions.objects import bundles
from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import World

_HOSTNAME = "kubernetes.io/hostname"


def with_nodes(job: Object, world: World, spec: FineTuneJobSpec) -> Object:
    """Return the Job of an attempt for all nodes of the job. With one node it stays as it is."""
    nodes, name = spec.compute.nodes, job["metadata"]["name"]
    if nodes == 1:
        return job
    del job["spec"]["backoffLimit"]
    # The launchers end the other pods when one fails, and each says why. The Job controller would delete them.
    job["spec"] |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes, "backoffLimitPerIndex": 0}
    template = job["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    service = names.nodes_name(world.name, world.uid)
    pod["subdomain"] = service
    own = {name: labels[name] for name in (names.LABEL_JOB_UID, names.LABEL_ATTEMPT)}
    apart = [{"labelSelector": {"matchLabels": own}, "topologyKey": _HOSTNAME}]
    pod["affinity"] = {
        **pod.get("affinity", {}),
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart},
    }
    container = pod["containers"][0]
    first = f"{name}-0.{service}.{world.namespace}.svc:{names.NODE_PORT}"
    # An older trainer does not know these arguments and refuses them: each pod would train alone.
    container["args"] = [container["args"][0], "--nodes", str(nodes), "--first-node", first, *container["args"][1:]]
    node_name = {"name": names.NODE_NAME_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    container["env"] = [*container["env"], node_name]
    return job


def network(world: World, spec: FineTuneJobSpec) -> list[Object]:
    """Return the objects through which the pods of the job find each other. With one node there are none."""
    return [_service(world), _policy(world)] if spec.compute.nodes > 1 else []


def _service(world: World) -> Object:
    """Return the headless Service. It gives each pod a name in DNS, also before the pod is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": bundles.owned(world, names.nodes_name(world.name, world.uid), {}),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": _training_pods(world)},
    }


def _policy(world: World) -> Object:
    """Return the NetworkPolicy that lets only the pods of the job reach each other.

    torch.distributed does not ask who connects. In a namespace that denies all traffic to pods, this permits it."""
    selector = {"matchLabels": _training_pods(world)}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": bundles.owned(world, names.nodes_name(world.name, world.uid), {}),
        "spec": {
            "podSelector": selector,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": selector}]}],
        },
    }


def _training_pods(world: World) -> dict[str, str]:
    return {names.LABEL_JOB_UID: world.uid, names.LABEL_STEP: "train"}
