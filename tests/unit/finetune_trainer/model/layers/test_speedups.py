"""Each speedup gives the same results as Transformers, replaces the right parts, and restores the model."""

import sys
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
import triton
from peft import PeftModel
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune_api.spec.method import Method
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.layers.speedups import Speedups, use_speedups
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters, use_gradient_checkpointing
from tests.unit.finetune_trainer.small_runs import SIZES, examples, fresh_accelerator, prepared_model, tiny_llama

NONE = Speedups(**{field.name: False for field in fields(Speedups)})
ALL = Speedups(**{field.name: True for field in fields(Speedups)})
EACH = [replace(NONE, **{field.name: True}) for field in fields(Speedups)]
ROWS = examples([24, 7, 40])


@pytest.fixture
def kernels() -> Iterator[None]:
    """Runs the Triton kernels with Triton's interpreter, because the tests have no GPU."""
    name, before = "finetune_trainer.model.layers.fused_kernels", triton.knobs.runtime.interpret
    loaded = sys.modules.pop(name, None)
    triton.knobs.runtime.interpret = True
    yield
    triton.knobs.runtime.interpret = before
    sys.modules.pop(name, None)
    if loaded:
        sys.modules[name] = loaded


def of_family(family: str, dtype: torch.dtype) -> PreTrainedModel:
    sizes = {**SIZES, "head_dim": 8, "pad_token_id": 0}
    match family:
        case "qwen3":
            return prepared_model(Qwen3ForCausalLM(Qwen3Config(**sizes)), dtype)
        case "mistral":
            return prepared_model(MistralForCausalLM(MistralConfig(**sizes, sliding_window=16)), dtype)
        case "gemma3":
            return prepared_model(Gemma3ForCausalLM(Gemma3TextConfig(**sizes, query_pre_attn_scalar=8)), dtype)
        case _:
            return tiny_llama(dtype)


def adapted(family: str, dtype: torch.dtype) -> PeftModel:
    model = attach_lora(of_family(family, dtype), Method(), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def losses_and_gradient(model: PeftModel, speedups: Speedups, precision: str = "no") -> tuple[Tensor, Tensor]:
    model.zero_grad()
    model.train()
    with use_speedups(model, speedups):
        with fresh_accelerator(precision).autocast():
            losses = token_losses(model, micro_batch(ROWS, torch.device("cpu")))
        losses.mean().backward()
    gradients = [parameter.grad for parameter in trainable_parameters(model)]
    return losses.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("speedups", [*EACH, ALL], ids=[*(field.name for field in fields(Speedups)), "all"])
def test_losses_and_gradients_equal_those_without_the_speedup(family: str, speedups: Speedups) -> None:
    model = adapted(family, torch.float32)
    losses, gradient = losses_and_gradient(model, NONE)
    faster, faster_gradient = losses_and_gradient(model, speedups)
    torch.testing.assert_close(faster, losses, rtol=1e-4, atol=1e-4)
    assert (faster_gradient - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.usefixtures("kernels")
def test_gradient_checkpointing_changes_nothing() -> None:
    model = adapted("llama", torch.float32)
    losses, gradient = losses_and_gradient(model, ALL)
    use_gradient_checkpointing(model, True)
    again, gradient_again = losses_and_gradient(model, ALL)
    torch.testing.assert_close(again, losses, rtol=1e-6, atol=1e-6)
    assert (gradient_again - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.usefixtures("kernels")
def test_bf16_is_rounded_no_more_than_without_the_speedup() -> None:
    _, exact = losses_and_gradient(adapted("llama", torch.float32), NONE)
    model = adapted("llama", torch.bfloat16)
    _, plain = losses_and_gradient(model, NONE, "bf16")
    _, faster = losses_and_gradient(model, ALL, "bf16")
    assert (faster - exact).norm() < 1.3 * (plain - exact).norm()


def patched(model: PeftModel, kind: str) -> int:
    return sum("forward" in vars(module) for module in model.modules() if type(module).__name__.endswith(kind))


def test_a_speedup_replaces_every_layer_with_llamas_code_and_no_other() -> None:
    llama, gemma = adapted("llama", torch.float32), adapted("gemma3", torch.float32)
    for model, norms, layers in ((llama, 2 * 2 + 1, 2), (gemma, 0, 0)):
        with use_speedups(model, ALL):
            # Gemma's norm multiplies by 1 + weight, and its activation is a GELU.
            assert (patched(model, "RMSNorm"), patched(model, "MLP")) == (norms, layers)


def test_the_model_is_unchanged_afterwards() -> None:
    model = adapted("llama", torch.float32)
    place = sys.modules[type(model.get_base_model()).__module__]
    rotary = place.apply_rotary_pos_emb
    with use_speedups(model, ALL):
        assert place.apply_rotary_pos_emb is not rotary
    assert place.apply_rotary_pos_emb is rotary
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "size"), [(4, 8), (3, 12), (1, 64)])
def test_rotary_equals_transformers_for_every_shape(dtype: torch.dtype, heads: int, size: int) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from finetune_trainer.model.layers.fused_kernels import rotary, takes_rotary

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 11, heads, size, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
    cos, sin = (torch.randn(1, 11, size, generator=generator).to(dtype) for _ in range(2))
    outer = torch.randn(1, heads, 11, size, generator=generator).to(dtype)
    assert takes_rotary(x, cos)
    plain = apply_rotary_pos_emb(x, x, cos, sin)[0]
    (wanted,) = torch.autograd.grad(plain, x, outer)
    rotated = rotary(x, cos, sin)
    (given,) = torch.autograd.grad(rotated, x, outer)
    tolerance = 1e-6 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(rotated, plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance)
    assert rotated.stride() == x.stride()
