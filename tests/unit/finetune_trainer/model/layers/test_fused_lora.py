"""Fused LoRA layers give the same results as PEFT's layers, and are restored afterwards."""

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.random_models import quantize
from finetune_api.spec.method import Method
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.layers import fused_lora as fused_lora_module
from finetune_trainer.model.layers.fused_lora import _is_fusible, fused_lora
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters, use_gradient_checkpointing
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, fresh_accelerator, prepared_model, tiny_llama

ROWS = examples([24, 7, 40])


def adapted(family: str, dtype: torch.dtype, four_bit: bool = False, **lora: Any) -> PeftModel:
    if family == "llama":
        base = tiny_llama(dtype)
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        base = prepared_model(Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **sizes, num_hidden_layers=2)), dtype)
    if four_bit:
        quantize(base)
        for module in base.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = dtype
    model = attach_lora(base, Method.model_validate({"lora": lora}), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at 0, and then the gradient of A is always 0
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        if "lora_" in name and dtype is torch.float64:
            parameter.data = parameter.data.double()
    return model


def losses_and_gradient(model: PeftModel, precision: str) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    with fresh_accelerator(precision).autocast():
        losses = token_losses(model, micro_batch(ROWS, torch.device("cpu")))
    losses.mean().backward()
    gradients = [parameter.grad for parameter in trainable_parameters(model)]
    return losses.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


FAMILIES = ["llama", "qwen2, whose projections have a bias"]


SHARED = pytest.mark.parametrize("shared_inputs", [False, True])


@SHARED
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_losses_and_gradients_equal_pefts(
    family: str, dtype: torch.dtype, tolerance: float, shared_inputs: bool
) -> None:
    model = adapted(family, dtype, alpha=48)
    losses, gradient = losses_and_gradient(model, "no")
    with fused_lora(model, shared_inputs=shared_inputs):
        fused_losses, fused_gradient = losses_and_gradient(model, "no")
    torch.testing.assert_close(fused_losses, losses, rtol=tolerance, atol=tolerance)
    assert (fused_gradient - gradient).norm() < tolerance * gradient.norm()


@SHARED
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_rounds_no_more_than_peft(family: str, shared_inputs: bool) -> None:
    _, exact = losses_and_gradient(adapted(family, torch.float64), "no")
    model = adapted(family, torch.bfloat16)
    _, plain = losses_and_gradient(model, "bf16")
    with fused_lora(model, shared_inputs=shared_inputs):
        _, fused = losses_and_gradient(model, "bf16")
    assert fused.dtype is plain.dtype is torch.float32
    assert (fused - exact).norm() < 1.3 * (plain - exact).norm()


def test_every_layer_is_fused_and_restored_afterwards() -> None:
    model = adapted("llama", torch.float32)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    with fused_lora(model):
        assert len(layers) == 2 * 7
        assert all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("shared_inputs", [False, True])
def test_layers_on_4_bits_give_the_same_results_as_peft(shared_inputs: bool) -> None:
    model = adapted("llama", torch.float32, four_bit=True)
    losses, gradient = losses_and_gradient(model, "no")
    with fused_lora(model, four_bit=True, shared_inputs=shared_inputs):
        assert sum("forward" in vars(module) for module in model.modules()) == 2 * 7
        fused_losses, fused_gradient = losses_and_gradient(model, "no")
    torch.testing.assert_close(fused_losses, losses, rtol=1e-4, atol=1e-4)
    assert (fused_gradient - gradient).norm() < 1e-4 * gradient.norm()


def test_layers_on_4_bits_are_fused_only_on_request() -> None:
    model = adapted("llama", torch.bfloat16, four_bit=True)
    with fused_lora(model):
        assert not any("forward" in vars(module) for module in model.modules())


def test_shared_inputs_are_multiplied_with_a_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = adapted("llama", torch.float32), list[int]()
    losses_and_gradient(model, "no")  # the first call runs the output head one more time
    outputs = fused_lora_module._outputs

    def counted(layers: Any, x: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(layers))
        return outputs(layers, x)

    monkeypatch.setattr(fused_lora_module, "_outputs", counted)
    with fused_lora(model, shared_inputs=True):
        losses_and_gradient(model, "no")
    # Queries, keys and values; the output projection; gate and up; down: in each of two layers.
    assert calls == [3, 1, 2, 1] * 2


def test_gradient_checkpointing_changes_no_result_of_shared_inputs() -> None:
    model = adapted("llama", torch.float64)
    with fused_lora(model, shared_inputs=True):
        losses, gradient = losses_and_gradient(model, "no")
        use_gradient_checkpointing(model, True)
        model.train()
        again, gradient_again = losses_and_gradient(model, "no")
    torch.testing.assert_close(again, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_again, gradient, rtol=1e-12, atol=1e-12)


def test_if_one_sibling_cannot_be_fused_the_others_are_fused_alone() -> None:
    model = adapted("llama", torch.float64, targetModules=["q_proj", "v_proj"])
    losses, gradient = losses_and_gradient(model, "no")
    with fused_lora(model, shared_inputs=True):
        assert sum("forward" in vars(module) for module in model.modules()) == 2 * 2
        fused_losses, fused_gradient = losses_and_gradient(model, "no")
    torch.testing.assert_close(fused_losses, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fused_gradient, gradient, rtol=1e-12, atol=1e-12)


def test_layers_with_dropout_are_not_fused() -> None:
    model = adapted("llama", torch.float32, dropout=0.1)
    assert not any(_is_fusible(module, four_bit=False) for module in model.modules())


def test_a_disabled_adapter_stays_disabled() -> None:
    model = adapted("llama", torch.float32)
    with model.disable_adapter():
        assert not any(_is_fusible(module, four_bit=False) for module in model.modules())
