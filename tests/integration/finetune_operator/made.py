"""What the operator made for a job on several nodes, and ways to look at it: at the pods of all steps together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from finetune_api import names
from tests.integration.jobs import ATTEMPT, PREFLIGHT
from tests.integration.kube import Object

STEPS = (PREFLIGHT, ATTEMPT, names.CLEANUP)


@dataclass(frozen=True)
class Made:
    """What the API server has of the job, once the attempt has failed and its checkpoints are being deleted."""

    status: Object
    bundle: Object
    service: Object
    jobs: dict[str, Object]
    """The batch Jobs, by step."""
    pods: dict[str, Object]
    """A pod of each step."""


Look = Callable[[Made], Any]


def containers(pod: Object) -> dict[str, Object]:
    """Those that wait for each other and those that run, by name."""
    return {each["name"]: each for each in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]}


def in_pods(look: Callable[[Object], Any]) -> Look:
    """Looks at the pod of each step."""
    return lambda made: {step: look(pod) for step, pod in made.pods.items()}


def of_pods(field: str) -> Look:
    """A field of spec of each pod; None if it is not set."""
    return in_pods(lambda pod: pod["spec"].get(field))


def of_containers(look: Callable[[Object], Any]) -> Look:
    """Looks at each container of the pod of each step."""
    return in_pods(lambda pod: {name: look(container) for name, container in containers(pod).items()})


def in_all(seen: Any) -> dict[str, Any]:
    """The same in the pod of each step."""
    return dict.fromkeys(STEPS, seen)


def in_containers(
    seen: Any, of_preflight: Any = ..., of_fetcher: Any = ..., of_cleanup: Any = ...
) -> dict[str, dict[str, Any]]:
    """What is seen in each container. `seen`: in the trainer's of the attempt, and in those for which nothing else is
    given."""
    preflight, fetcher, cleanup = (seen if each is ... else each for each in (of_preflight, of_fetcher, of_cleanup))
    attempt = {names.FETCHER: fetcher, names.CONTAINER: seen}
    return {
        PREFLIGHT: {names.CONTAINER: preflight},
        ATTEMPT: attempt,
        names.CLEANUP: {names.CONTAINER: cleanup},
    }


def mounts(pod: Object, container: Object, folder: str) -> list[Object]:
    """The volumes that a container has at this folder or below it, without their names."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    paths = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    found = [volume for path, volume in paths.items() if f"{path}/".startswith(f"{folder}/")]
    return [{kind: source for kind, source in volume.items() if kind != "name"} for volume in found]


def mounted(folder: str, kind: str, name: str) -> Look:
    """The names of the Secrets or ConfigMaps or claims that each container has below this folder."""
    return in_pods(
        lambda pod: {
            own: sorted(volume[kind][name] for volume in mounts(pod, container, folder))
            for own, container in containers(pod).items()
        }
    )


def variable(name: str) -> Callable[[Object], str | None]:
    """The value of an environment variable of a container; None if it is not set."""
    return lambda container: next((v.get("value") for v in container["env"] if v["name"] == name), None)


def keys_of(part: str, wanted: Iterable[str]) -> Look:
    """Those labels or annotations of each pod that have one of these keys."""
    return in_pods(lambda pod: {key: pod["metadata"][part].get(key) for key in wanted})


def tolerating(tolerations: list[Object]) -> Look:
    """The steps whose pods have all these tolerations."""
    return lambda made: [
        step for step, pod in made.pods.items() if all(each in pod["spec"]["tolerations"] for each in tolerations)
    ]


def amount(kind: str, name: str) -> Look:
    """A request or limit of the trainer and of the container that fetches the model; None if it is not set."""

    def look(made: Made) -> dict[str, Any]:
        found = {own: each["resources"][kind].get(name) for own, each in containers(made.pods[ATTEMPT]).items()}
        return {own: None if value is None else parse_quantity(value) for own, value in found.items()}

    return look


def for_both(value: str) -> dict[str, Any]:
    """Such an amount, if both containers have the same."""
    return dict.fromkeys((names.FETCHER, names.CONTAINER), parse_quantity(value))


def shared_memory(made: Made) -> Any:
    """The size of /dev/shm in the pod of the attempt."""
    pod = made.pods[ATTEMPT]
    ((volume,),) = [mounts(pod, each, "/dev/shm") for name, each in containers(pod).items() if name == names.CONTAINER]
    return volume["emptyDir"]["medium"], parse_quantity(volume["emptyDir"]["sizeLimit"])


def size_of(volume: str) -> Look:
    """The size limit of an emptyDir of each pod; None if the pod does not have it."""
    return in_pods(
        lambda pod: next((v["emptyDir"]["sizeLimit"] for v in pod["spec"]["volumes"] if v["name"] == volume), None)
    )


def of_nodes(made: Made) -> Object:
    """What the attempt's Job and the Service say about nodes."""
    job, service = made.jobs[ATTEMPT]["spec"], made.service["spec"]
    found = {field: job.get(field) for field in ("completionMode", "completions", "parallelism")}
    return found | {field: service.get(field) for field in ("clusterIP", "publishNotReadyAddresses")}


def grace(made: Made) -> list[Any]:
    """The grace period of each pod, and what the trainer of the attempt knows about it."""
    (trainer,) = made.pods[ATTEMPT]["spec"]["containers"]
    delay = trainer["lifecycle"]["preStop"]["sleep"]["seconds"]
    return [of_pods("terminationGracePeriodSeconds")(made), delay, variable(names.GRACE_VARIABLE)(trainer)]


def queues(made: Made) -> dict[str, str | None]:
    """The queue of each Job."""
    return {step: job["metadata"]["labels"].get(names.LABEL_QUEUE) for step, job in made.jobs.items()}
