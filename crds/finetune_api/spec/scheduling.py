"""On which nodes pods run: node labels and tolerations, as in a Pod."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, SchemaKeys, rules

Label = Annotated[str, Field(max_length=253)]
NodeLabels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=32),
    SchemaKeys(
        rules(
            (
                "self.all(name, name.size() <= 317 && "
                "name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && "
                "self[name].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))",
                "must be node labels, for example nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3; list them with "
                "kubectl get nodes --show-labels",
            )
        )
    ),
]


class Toleration(ApiModel):
    """A toleration of the training pods, as in a Pod."""

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
