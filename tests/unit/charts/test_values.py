"""The chart's values: documented, checked before anything is installed, and a valid profile by default."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from finetune_api.spec.profile import FineTuneProfileSpec

CHART = Path(__file__).parents[3] / "charts" / "finetune-operator"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())


def values_with(path: str, value: object) -> dict[str, Any]:
    """The default values with one changed, named as `helm --set` names it."""
    changed = copy.deepcopy(VALUES)
    *parents, last = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[last] = value
    return changed


def test_the_default_values_follow_the_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("imgae", {}),
        ("image.repositry", "typo"),
        ("image.repository", ""),
        ("image.digest", "sha256:short"),
        ("image.tag", "with space"),
        ("image.pullPolicy", "always"),
        ("trainerImage.registry", "example.com"),
        ("profile.allowCPU", "yes"),
        ("profile.allowCpu", True),
        ("profile.name", "Not_A_Name"),
        ("profile.gpuTypes", []),
        ("profile.gpuTypes", [{"name": f"gpu-{i}"} for i in range(17)]),
        ("profile.storages", []),
        ("watchNamespaces", "tickets"),
        ("watchNamespaces", ["tickets", "search", "tickets"]),
        ("watchNamespaces", ["tickets,search"]),
        ("watchNamespaces", ["team-*"]),
        ("watchNamespaces", ["Tickets"]),
        ("watchNamespaces", ["tickets-"]),
        ("watchNamespaces", ["t" * 64]),
        ("watchNamespaces", [""]),
        ("watchNamespaces", [7]),
        ("watchNamespaces", None),
        ("watchNamespace", ["tickets"]),
        ("clusterResources", False),
        ("clusterResources", {}),
        ("clusterResources.create", "false"),
        ("clusterResources.created", False),
        ("logLevel", "info"),
        ("imagePullSecrets", ["name-alone"]),
        ("podAnnotations", {"number": 1}),
    ],
)
def test_the_schema_refuses_a_value_that_would_be_ignored_or_break(path: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values_with(path, value), SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("image.digest", "sha256:" + "0" * 64),
        ("image.tag", "1.2.3-rc.1"),
        ("profile.create", False),
        ("profile.gpuTypes", [{"name": "a"}, {"name": "b"}]),
        ("watchNamespaces", ["tickets", "team-2", "7", "t" * 63]),
        ("clusterResources.create", False),
        ("imagePullSecrets", [{"name": "registry"}]),
    ],
)
def test_the_schema_accepts_every_value_that_the_templates_use(path: str, value: object) -> None:
    jsonschema.validate(values_with(path, value), SCHEMA)


def test_every_value_of_the_schema_has_a_default_and_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for name in SCHEMA["properties"].keys() - {"global", "tolerations", "affinity"}:  # those share nodeSelector's
        place = lines.index(next(line for line in lines if line.startswith(f"{name}:")))
        assert lines[place - 1].startswith("# "), f"{name} has no comment above it"


def test_the_default_profile_is_a_valid_one() -> None:
    profile = {key: VALUES["profile"][key] for key in ("gpuTypes", "storages")}
    spec = FineTuneProfileSpec.model_validate(
        profile | {"trainer": {"image": "trainer", "allowCPU": VALUES["profile"]["allowCPU"]}}
    )
    assert spec.gpu_types[0].resource_name == "nvidia.com/gpu"
    assert not spec.trainer.allow_cpu, "training on a CPU by accident would look like a hang"
