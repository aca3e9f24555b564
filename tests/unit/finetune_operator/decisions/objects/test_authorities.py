"""A pod trusts the private authorities of the storages that its job uses, and of no others."""

from typing import Any

import pytest

from finetune_api.spec.profile import FineTuneProfileSpec
from finetune_operator.decisions.objects import children
from finetune_operator.decisions.objects.children import Try
from finetune_operator.observed.facts.pods import Object
from tests.unit.finetune_operator.worlds import PROFILE, SPEC, fresh


def profile(*authorities: dict[str, str] | None) -> FineTuneProfileSpec:
    """A profile whose storages of rows, of models and of all other buckets have these authorities."""
    storages: list[dict[str, Any]] = [
        {"buckets": [bucket], "endpoint": "https://s3.example"} | ({"caBundle": authority} if authority else {})
        for bucket, authority in zip(("data", "models", "*"), authorities, strict=True)
    ]
    return FineTuneProfileSpec.model_validate(
        {**PROFILE.model_dump(by_alias=True, exclude_none=True), "storages": storages}
    )


def pods(settings: FineTuneProfileSpec) -> list[Object]:
    world = fresh()
    jobs = [
        children.preflight_job(world, SPEC, settings),
        children.attempt_job(world, SPEC, settings, Try(1, settings.gpu_types[0])),
        children.cleanup_job(world, SPEC, settings),
    ]
    return [job["spec"]["template"]["spec"] for job in jobs]


def mounted(pod: Object) -> dict[str, str]:
    """ConfigMap by folder, of the authorities."""
    volumes = {volume["name"]: volume.get("configMap", {}) for volume in pod["volumes"]}
    mounts = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"].startswith("authority-")]
    assert all(mount["readOnly"] and volumes[mount["name"]]["optional"] for mount in mounts)
    return {mount["mountPath"]: volumes[mount["name"]]["name"] for mount in mounts}


@pytest.mark.parametrize(
    ("authorities", "found"),
    [
        ([None, None, None], []),
        ([{"configMapName": "a"}, None, {"configMapName": "b"}], ["a", "b"]),
        # two keys of one ConfigMap are one volume
        ([{"configMapName": "a", "key": "x"}, {"configMapName": "a", "key": "y"}, None], ["a"]),
    ],
)
def test_every_pod_has_each_config_map_once(authorities: list[dict[str, str] | None], found: list[str]) -> None:
    for pod in pods(profile(*authorities)):
        assert mounted(pod) == {f"/etc/finetune/authorities/{name}": name for name in found}


def test_a_storage_that_the_job_does_not_use_gives_no_authority() -> None:
    settings = profile({"configMapName": "a"}, None, None)
    unused = settings.storages[0].model_copy(update={"buckets": ["elsewhere"]})
    for pod in pods(settings.model_copy(update={"storages": [unused, *settings.storages[1:]]})):
        assert mounted(pod) == {}
