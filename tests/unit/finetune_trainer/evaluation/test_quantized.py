"""The choice between QLoRA's two base models, and the cost of quantizing."""

from types import SimpleNamespace

import pytest
import torch

from finetune_trainer.evaluation.quantized import base_name, compare_quantized, only_quantized, shortage
from tests.unit.finetune_trainer.small_runs import measured

CPU = torch.device("cpu")


def test_on_a_cpu_compute_memory_decides() -> None:
    assert shortage("8.0Gi", CPU, "8Gi") is None
    assert (
        shortage("8.1Gi", CPU, "8Gi") == "the base model in bfloat16 needs about 8.1Gi, and spec.compute.memory is 8Gi"
    )


def test_on_a_gpu_the_gpus_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests have no GPU. This is what the driver would report.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 2**30))
    gpu = torch.device("cuda")
    assert shortage("16.0Gi", gpu, "1Gi") is None
    assert shortage("22.9Gi", gpu, "64Gi") == "the base model in bfloat16 needs about 22.9Gi, and the GPU has 16.0Gi"


def test_the_cost_of_quantizing_is_reported_and_the_base_model_is_named_with_its_number_format() -> None:
    base, four_bit = (measured([loss] * 4, [False] * 4) for loss in (2.0, 2.125))
    both = compare_quantized(base, four_bit)
    assert (both.loss, both.loss_change) == (2.125, 0.125)
    assert "Quantizing the base model to 4 bits changed its loss by +0.1250 nats per token, to 2.1250." in both.message
    alone = only_quantized(four_bit, "it is too large")
    assert (alone.loss, alone.loss_change) == (2.125, None)
    assert "measured in 4 bits, because it is too large." in alone.message
    assert [base_name(found) for found in (None, both, alone)] == [
        "the base model",
        "the base model in bfloat16",
        "the base model in 4 bits",
    ]
