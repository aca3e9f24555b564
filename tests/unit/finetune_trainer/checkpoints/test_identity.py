"""What decides the steps of a job, and what does not."""

import re
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.bundle import Bundle
from finetune_api.spec.method import MethodType
from finetune_trainer.checkpoints.folder import DEFAULTED, Difference, Manifest
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.handover.prepared import Prepared
from tests.unit.finetune_trainer.conftest import MakeBundle
from tests.unit.finetune_trainer.preflight_runs import run


@pytest.fixture
def prepared(make_bundle: MakeBundle) -> Prepared:
    return run(make_bundle())


def difference(written: dict[str, Any], ours: dict[str, Any]) -> Difference | None:
    """Why a checkpoint that was written for these facts is not used for ours."""
    return Manifest.model_validate_json(Manifest(files={}, about=written).model_dump_json()).difference(ours)


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
        ({"training": {"earlyStopping": {}}}, "spec.training.earlyStopping"),
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
    for said in (difference(ours, theirs), difference(theirs, ours)):
        assert re.search(f"it was written for (the default of )?{re.escape(named)}[ ,]", str(said))
        assert "null" not in str(said)


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"microBatchTokens": 64}},
        {"training": {"gradientCheckpointing": "Enabled"}},
        {"training": {"checkpoint": {"every": 3, "keep": 5}}},
        {"output": {"uri": "/elsewhere"}},
        {"evaluation": {"maxRows": 3}},
        {"training": {"seed": 0}},
        {"method": {"type": "LoRA"}},
        {"training": {"learningRate": 1e-3, "warmupRatio": 0.1, "maxSteps": 9, "evaluateEvery": 2, "publish": "Last"}},
    ],
)
def test_a_field_that_changes_no_step_is_left_out(
    make_bundle: MakeBundle, prepared: Prepared, parts: dict[str, Any]
) -> None:
    bundle = make_bundle()
    assert difference(facts(bundle, prepared), facts(with_parts(bundle, **parts), prepared)) is None


def test_what_auto_has_chosen_decides_the_steps(make_bundle: MakeBundle, prepared: Prepared) -> None:
    auto, by_hand = make_bundle(), make_bundle(method={"type": "QLoRA"})
    qlora = replace(prepared, resolved=prepared.resolved.model_copy(update={"method": MethodType.QLORA}))
    chosen = facts(auto, qlora)
    assert chosen["spec.method.type"] == "Auto", "an earlier version of the trainer compares it"
    assert difference(chosen, facts(by_hand, qlora)) is None
    assert difference(facts(by_hand, qlora), chosen) is None
    assert 'status.resolved.method "QLoRA", and this run has "LoRA"' in str(difference(chosen, facts(auto, prepared)))


def test_a_field_that_a_version_does_not_know_counts_as_its_default(
    make_bundle: MakeBundle, prepared: Prepared
) -> None:
    known = facts(make_bundle(), prepared)
    defaulted = known | {"spec.training.new": 3, DEFAULTED: [*known[DEFAULTED], "spec.training.new"]}
    set_by_hand = known | {"spec.training.new": 4}
    assert difference(known, defaulted) is None
    assert difference(defaulted, known) is None, "also after a return to the earlier version"
    assert "it was written for the default of spec.training.new, and this run has 4" in str(
        difference(known, set_by_hand)
    )
    assert "it was written for spec.training.new 4, and this run has its default" in str(difference(set_by_hand, known))


def test_another_default_of_a_later_version_is_another_run(make_bundle: MakeBundle, prepared: Prepared) -> None:
    before = facts(make_bundle(), prepared)
    assert "spec.training.maxGradNorm" in before[DEFAULTED]
    after = facts(with_parts(make_bundle(), training={"maxGradNorm": 0.5}), prepared)
    after[DEFAULTED] = before[DEFAULTED]
    assert "spec.training.maxGradNorm 1.0, and this run has 0.5" in str(difference(before, after))


def test_the_facts_of_a_version_that_left_out_defaults_can_be_read(make_bundle: MakeBundle, prepared: Prepared) -> None:
    ours = facts(with_parts(make_bundle(), training={"seed": 4}), prepared)
    theirs = {name: value for name, value in ours.items() if name not in {*ours[DEFAULTED], DEFAULTED}}
    assert theirs["spec.training.seed"] == 4
    assert difference(theirs, ours) is None


def test_data_model_and_resolved_settings_are_part_of_it(make_bundle: MakeBundle, prepared: Prepared) -> None:
    found = facts(make_bundle(), prepared)
    assert found["the digest of the data"] == prepared.preflight.digest
    assert len(found["the digest of the base model"]) == 64
    assert found["status.resolved.totalSteps"] == prepared.resolved.total_steps
