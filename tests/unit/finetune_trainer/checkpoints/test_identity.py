"""What decides the steps of a job, and what does not."""

from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.handover.prepared import Prepared
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import run


@pytest.fixture
def prepared(make_bundle: MakeBundle) -> Prepared:
    return run(make_bundle())


def with_parts(bundle: Bundle, **parts: dict[str, Any]) -> Bundle:
    said = bundle.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, part in parts.items():
        said["spec"][name] = said["spec"].get(name, {}) | part
    return Bundle.model_validate(said)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"training": {"globalBatchSize": 4}}, "spec.training.globalBatchSize"),
        ({"training": {"seed": 4}}, "spec.training.seed"),
        ({"training": {"earlyStopping": {"patience": 9}}}, "spec.training.earlyStopping.patience"),
        ({"training": {"optimizer": "PagedAdamW8bit"}}, "spec.training.optimizer"),
        ({"method": {"lora": {"dropout": 0.5}}}, "spec.method.lora.dropout"),
        ({"method": {"lora": {"targetModules": ["q_proj"]}}}, "spec.method.lora.targetModules"),
    ],
)
def test_a_field_that_changes_the_steps_is_named(
    make_bundle: MakeBundle, prepared: Prepared, parts: dict[str, Any], named: str
) -> None:
    bundle = make_bundle()
    ours, theirs = facts(bundle, prepared), facts(with_parts(bundle, **parts), prepared)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == {named}


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"microBatchTokens": 64}},
        {"training": {"gradientCheckpointing": "Enabled"}},
        {"training": {"checkpoint": {"every": 3, "keep": 5}}},
        {"output": {"uri": "/elsewhere"}},
        {"evaluation": {"maxRows": 3}},
        {"training": {"seed": 0}},
    ],
)
def test_a_field_that_changes_no_step_is_left_out(
    make_bundle: MakeBundle, prepared: Prepared, parts: dict[str, Any]
) -> None:
    bundle = make_bundle()
    assert facts(bundle, prepared) == facts(with_parts(bundle, **parts), prepared)


def test_data_model_and_resolved_settings_are_part_of_it(make_bundle: MakeBundle, prepared: Prepared) -> None:
    found = facts(make_bundle(), prepared)
    assert found["the digest of the data"] == prepared.preflight.digest
    assert len(found["the digest of the base model"]) == 64
    assert found["status.resolved.totalSteps"] == prepared.resolved.total_steps
