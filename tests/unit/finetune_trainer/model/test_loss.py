"""The loss is the mean over the learned tokens, for every packing of the rows."""

import pytest
import torch
from peft import PeftModel
from transformers import Gemma2Config, Gemma2ForCausalLM

from finetune_api.spec.method import Lora, LoraBias, Method
from finetune_trainer.model import loss
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import frozen_head, token_losses
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters
from finetune_trainer.training.loop import accumulate_gradients
from tests.unit.finetune_trainer.model_families import phi
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, fresh_accelerator, prepared_model, tiny_llama

ROWS = examples([24, 7, 40, 12, 33])


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_the_loss_of_a_row_equals_transformers_loss(row: int) -> None:
    model, example = tiny_llama(), ROWS[row]
    input_ids = torch.from_numpy(example.input_ids).long()[None]
    labels = torch.where(torch.from_numpy(example.supervised), input_ids, -100)
    theirs = model(input_ids=input_ids, labels=labels).loss
    ours = token_losses(model, micro_batch([example], model.device)).mean()
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-6)  # Transformers computes its loss in fp32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("micro_batch_tokens", [1, 50, 64])
def test_loss_and_gradients_do_not_depend_on_the_micro_batches(
    dtype: torch.dtype, tolerance: float, micro_batch_tokens: int
) -> None:
    whole, whole_gradients = _step(dtype, 10_000)
    split, split_gradients = _step(dtype, micro_batch_tokens)
    assert split == pytest.approx(whole, abs=tolerance)
    for split_gradient, whole_gradient in zip(split_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(split_gradient, whole_gradient, rtol=0, atol=tolerance)


def test_the_mean_is_over_tokens_not_over_rows() -> None:
    model = _adapted(torch.float64)
    loss = accumulate_gradients(model, ROWS, 50, fresh_accelerator())
    losses = [token_losses(model, micro_batch([row], model.device)) for row in ROWS]
    assert loss == pytest.approx(torch.cat(losses).mean().item(), abs=1e-10)
    assert loss != pytest.approx(torch.stack([row.mean() for row in losses]).mean().item(), abs=1e-3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_a_head_applied_in_chunks_gives_the_loss_and_gradient_of_logits_at_once(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = micro_batch(ROWS, torch.device("cpu"))
    monkeypatch.setitem(loss.CHUNK, "cpu", 7 * VOCABULARY)
    assert len(batch.labels) % 7, "the last chunk is not full"
    results = []
    for frozen in (True, False):
        model = tiny_llama(dtype)
        embedding = model.get_input_embeddings()
        embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())
        model.get_output_embeddings().requires_grad_(not frozen)
        assert (frozen_head(model) is not None) is frozen
        inputs: list[torch.Tensor] = []
        embedding.register_forward_hook(lambda module, args, output: inputs.append(output))  # noqa: B023
        losses = token_losses(model, batch)
        (losses * torch.linspace(0.5, 2, len(losses))).sum().backward()
        results.append((losses.detach(), inputs[-1].grad if inputs[-1].is_leaf else None))
    (chunked, gradient), (at_once, expected) = results
    assert chunked.dtype is torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(chunked, at_once, rtol=tolerance, atol=tolerance)
    assert (gradient - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("bias", LoraBias)
def test_every_bias_that_is_trained_has_a_gradient(bias: LoraBias) -> None:
    model = attach_lora(prepared_model(phi(), torch.float64), Method(lora=Lora(bias=bias)), seed=0).to(torch.float64)
    accumulate_gradients(model, ROWS, 50, fresh_accelerator())
    assert all(parameter.grad is not None for parameter in trainable_parameters(model))
    head = model.get_output_embeddings().bias
    assert (head.grad is not None and bool(head.grad.norm() > 0)) is (bias is LoraBias.ALL)


def test_the_model_itself_computes_logits_that_are_capped_after_the_head() -> None:
    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(**settings, head_dim=8, intermediate_size=64, num_hidden_layers=1)
    assert frozen_head(prepared_model(Gemma2ForCausalLM(config), torch.float32)) is None
    assert frozen_head(tiny_llama(torch.float32)) is not None


def test_finding_the_head_keeps_a_model_in_training_mode() -> None:
    model = _adapted(torch.float32).train()
    token_losses(model, micro_batch(ROWS, torch.device("cpu")))
    assert all(module.training for module in model.modules())


def _step(dtype: torch.dtype, micro_batch_tokens: int) -> tuple[float, list[torch.Tensor]]:
    model = _adapted(dtype)
    loss = accumulate_gradients(model, ROWS, micro_batch_tokens, fresh_accelerator())
    return loss, [parameter.grad for parameter in trainable_parameters(model) if parameter.grad is not None]


def _adapted(dtype: torch.dtype) -> PeftModel:
    model = attach_lora(tiny_llama(dtype), Method(), seed=0).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # B starts at 0, and then the gradient of A is always 0
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model
