"""Settings of the method for a model with experts."""

from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_trainer.base.expert_settings import require_expert_settings
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer.base.test_experts import STACKS


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"type": "QLoRA"}, "spec.method.type: QLoRA cannot quantize the experts"),
        ({"lora": {"dropout": 0.1}}, "spec.method.lora.dropout: the adapters of experts have no dropout"),
        ({"lora": {"useDora": True}}, "spec.method.lora.useDora: DoRA cannot be used on experts"),
        ({"lora": {"useDora": True, "targetModules": ["down_proj"]}}, "spec.method.lora.useDora"),
        ({"lora": {"bias": "All"}}, "spec.method.lora.bias: the biases of a model with experts"),
        ({"lora": {"modulesToSave": ["mlp"]}}, "spec.method.lora.modulesToSave: mlp is or contains"),
        ({"lora": {"modulesToSave": ["gate"]}}, "spec.method.lora.modulesToSave: gate is or contains"),
        ({"lora": {"modulesToSave": ["experts"]}}, "spec.method.lora.modulesToSave: experts is or contains"),
        ({"lora": {"modulesToSave": ["layers"]}}, "spec.method.lora.modulesToSave: layers is or contains"),
    ],
)
def test_settings_that_experts_do_not_have_are_refused(method: dict[str, Any], said: str) -> None:
    wish = Method.model_validate(method)
    with pytest.raises(TrainerFailure) as caught:
        require_expert_settings(wish, STACKS)
    assert caught.value.reason is FailureReason.SPEC_INVALID
    assert said in caught.value.message
    require_expert_settings(wish, {"model.layers.0.mlp.gate.weight": (64, 32)})


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"type": "Full"},
        {"type": "Full", "lora": {"dropout": 0.1}},
        {"lora": {"useRslora": True, "targetModules": ["gate_up_proj"]}},
        {"lora": {"useDora": True, "dropout": 0.1, "targetModules": ["q_proj"]}},
        {"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}},
    ],
)
def test_other_settings_are_not_refused(method: dict[str, Any]) -> None:
    require_expert_settings(Method.model_validate(method), STACKS)
