"""How pods are labelled and scheduled: labels, annotations and tolerations, as in a Pod."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules

Label = Annotated[str, Field(max_length=253)]
_KEY = (
    "name.size() <= 317 && name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')"
)
_VALUE = "self[name].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')"
NodeLabels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                f"self.all(name, {_KEY} && {_VALUE})",
                "must be node labels, for example nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3; list them with "
                "kubectl get nodes --show-labels",
            )
        )
    ),
]
RESERVED_PREFIXES = ("finetune.dev/", "kueue.x-k8s.io/", "batch.kubernetes.io/")
RESERVED_NAMES = (
    *("app.kubernetes.io/managed-by", "controller-uid", "job-name"),
    "kubectl.kubernetes.io/default-container",
)
"""Labels and annotations by which the operator, Kubernetes and Kueue find the pods. Nobody else may set them."""
_FREE = " && ".join(
    [*(f"!name.startsWith('{prefix}')" for prefix in RESERVED_PREFIXES), f"!(name in {list(RESERVED_NAMES)})"]
)
_RESERVED = (
    f"self.all(name, {_FREE})",
    f"must not contain keys that the operator, Kubernetes or Kueue set ({', '.join(RESERVED_PREFIXES)}, "
    f"{', '.join(RESERVED_NAMES)}): remove them",
)
PodLabels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=32),
    SchemaKeys(
        rules(
            (f"self.all(name, {_KEY} && {_VALUE})", "must be labels of a pod, for example cost-center: research"),
            _RESERVED,
        )
    ),
]
PodAnnotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(max_length=32),
    SchemaKeys(
        rules(
            (f"self.all(name, {_KEY})", "must be annotations of a pod, for example sidecar.istio.io/inject: 'false'"),
            _RESERVED,
        )
    ),
]


class Toleration(ApiModel):
    """A toleration of pods, as in a Pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "operator Exists does not accept a value: remove value, or set operator to Equal",
            ),
            (
                "self.operator != 'Equal' || (has(self.key) && self.key != '')",
                "operator Equal needs a key: set key to the key of the taint, or set operator to Exists",
            ),
        )
    )

    key: Label | None = None
    """Key of the taint. An empty key with operator Exists tolerates every taint."""
    operator: Annotated[str, SchemaKeys({"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists or Equal."""
    value: Label | None = None
    """Value of the taint, for operator Equal."""
    effect: Annotated[str, SchemaKeys({"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None = None
    """Effect of the taint. If unset, every effect is tolerated."""


Tolerations = Annotated[list[Toleration], Field(max_length=32), SchemaKeys({"x-kubernetes-list-type": "atomic"})]
