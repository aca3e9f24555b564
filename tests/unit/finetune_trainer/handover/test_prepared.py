"""Whether preflight has decided that the weights are sharded on the GPU type of a pod."""

from dataclasses import replace

import pytest

from finetune_api.bundle import Bundle
from finetune_api.spec.gpu_type import GpuType
from finetune_api.status.preflight import Estimate, Preflight
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.metrics.answer_kind import AnswerKind, Answers
from tests.unit.finetune_trainer.small_runs import resolved

ESTIMATES = [
    Estimate(gpu_type="small", memory="20Gi", fits=True, sharded=True),
    Estimate(gpu_type="large", memory="60Gi", fits=True),
]


@pytest.mark.parametrize(("gpu_type", "sharded"), [("small", True), ("large", False), ("new", False)])
def test_weights_are_sharded_on_the_type_for_which_preflight_predicted_it(gpu_type: str, sharded: bool) -> None:
    spec = {"model": {"uri": "m"}, "dataset": {"train": [{"uri": "d"}]}, "output": {"uri": "o"}}
    types = [GpuType(name=name) for name in ("small", "large")]
    bundle = Bundle.model_validate({"spec": spec}).model_copy(update={"gpu_types": types})
    prepared = Prepared([], [], resolved(), Preflight(estimate=ESTIMATES), Answers(AnswerKind.TEXT), (), "")
    assert prepared.sharded_on(bundle.on(gpu_type)) is sharded
    unknown = replace(prepared, preflight=Preflight())
    assert not unknown.sharded_on(bundle.on(gpu_type))
