"""The trained parameters of each method."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method, MethodType
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.loading import load_model
from finetune_trainer.model.parameters.trainable import as_published, make_trainable, trainable_parameters
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer.model_families import Family, gpt2, llama_tied, phi, save_family
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, tiny_llama

CPU = torch.device("cpu")
BATCH = micro_batch(examples([24, 40]), CPU)


def adapted(base: nn.Module | None = None, **lora: Any) -> PeftModel:
    method = Method.model_validate({"lora": lora})
    return make_trainable(base or tiny_llama(torch.float32), method, MethodType.LORA, seed=0)


def test_full_trains_every_weight_in_fp32_and_publishes_bf16(tiny_model_dir: Path) -> None:
    model = make_trainable(load_model(tiny_model_dir, MethodType.FULL, CPU), Method(), MethodType.FULL, seed=0)
    assert len(trainable_parameters(model)) == len(list(model.parameters()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    frequencies = model.model.rotary_emb.inv_freq.clone()
    assert {parameter.dtype for parameter in as_published(model).parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies), "positions keep their precision"


def test_full_keeps_a_tied_head_tied(tmp_path: Path) -> None:
    model = load_model(save_family(llama_tied, tmp_path), MethodType.FULL, CPU)
    model = make_trainable(model, Method(), MethodType.FULL, seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    token_losses(model, BATCH).mean().backward()  # type: ignore[no-untyped-call]
    as_published(model).save_pretrained(tmp_path / "out")
    assert load_model(tmp_path / "out", MethodType.LORA, CPU).lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_the_update_is_scaled_by_alpha_over_r_or_its_root(use_rslora: bool, scale: float) -> None:
    model = adapted(r=4, alpha=8, useRslora=use_rslora)
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {scale}


def test_dora_learns_magnitudes_too() -> None:
    model = adapted(useDora=True)
    assert any("lora_magnitude_vector" in name for name, p in model.named_parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in trainable_parameters(model))
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, BATCH), token_losses(tiny_llama(torch.float32), BATCH))


@pytest.mark.parametrize(("bias", "count"), [("None", 0), ("LoraOnly", 5), ("All", 7)])
def test_biases_are_trained_as_asked(tmp_path: Path, bias: str, count: int) -> None:
    base = load_model(save_family(phi, tmp_path), MethodType.LORA, CPU)
    model = adapted(base, bias=bias, targetModules=["q_proj", "k_proj", "v_proj", "fc1", "fc2"])
    biases = [n for n, p in model.named_parameters() if p.requires_grad and "layers.0" in n and n.endswith("bias")]
    assert len(biases) == count
    assert all(p.dtype == torch.float32 for p in trainable_parameters(model))


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.QLORA])
@pytest.mark.parametrize(("bias", "dora"), [("LoraOnly", False), ("All", False), ("LoraOnly", True)])
def test_a_trained_bias_stays_in_fp32_while_the_model_computes(
    tmp_path: Path, method: MethodType, bias: str, dora: bool
) -> None:
    base = load_model(save_family(phi, tmp_path), method, CPU)
    wish = Method.model_validate({"lora": {"bias": bias, "useDora": dora}})
    model = make_trainable(base, wish, method, seed=0)
    biases = {n: p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")}
    assert biases
    for parameter in biases.values():
        parameter.data += 1 / 3
    before = {name: parameter.detach().clone() for name, parameter in biases.items()}
    for train in (True, False):
        model.train(train)
        with fresh_accelerator("bf16").autocast():
            token_losses(model, BATCH).mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name in biases:
            assert parameter is biases[name], "the optimizer has this one"
            assert parameter.grad is not None
            assert (parameter.dtype, parameter.grad.dtype) == (torch.float32, torch.float32)
            assert torch.equal(parameter, before[name])


def test_a_bias_of_a_4_bit_layer_is_added_to_its_output(tmp_path: Path) -> None:
    base = load_model(save_family(phi, tmp_path), MethodType.QLORA, CPU)
    frozen = deepcopy(base)
    model = make_trainable(base, Method.model_validate({"lora": {"bias": "All"}}), MethodType.QLORA, seed=0)
    assert_same(model, frozen)
    for name, bias in frozen.named_parameters():
        if name.endswith("bias"):
            bias.data += 0.5
    with pytest.raises(AssertionError):
        assert_same(model, frozen)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.data += 0.5
    assert_same(model, frozen)


@pytest.mark.parametrize("method", [MethodType.LORA, MethodType.QLORA])
def test_modules_to_save_are_trained_saved_and_loaded(tiny_model_dir: Path, tmp_path: Path, method: MethodType) -> None:
    wish = Method.model_validate({"lora": {"modulesToSave": ["embed_tokens", "lm_head"]}})
    model = make_trainable(load_model(tiny_model_dir, method, CPU), wish, method, seed=0)
    whole = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert len(whole) == 2
    for parameter in trainable_parameters(model):
        parameter.data += 0.01
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load_model(tiny_model_dir, method, CPU), tmp_path)
    assert_same(model, loaded)
    with pytest.raises(AssertionError):
        assert_same(model, load_model(tiny_model_dir, method, CPU))


@pytest.mark.parametrize("named", ["embed_tokens", "lm_head"])
def test_a_trained_tied_embedding_stays_tied_to_the_head(tmp_path: Path, named: str) -> None:
    base = load_model(save_family(llama_tied, tmp_path / "base"), MethodType.LORA, CPU)
    model = adapted(base, modulesToSave=[named])
    assert sum(p.numel() == 320 * 32 for p in trainable_parameters(model)) == 1, "one matrix, trained once"
    for parameter in trainable_parameters(model):
        parameter.data += 0.01
    inner = model.base_model.model
    assert inner.get_output_embeddings().weight is inner.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base = load_model(tmp_path / "base", MethodType.LORA, CPU)
    assert_same(model, PeftModel.from_pretrained(base, tmp_path / "adapter"))


def test_a_4_bit_layer_cannot_be_a_saved_module(tiny_model_dir: Path) -> None:
    wish = Method.model_validate({"lora": {"modulesToSave": ["down_proj"], "targetModules": ["q_proj"]}})
    with pytest.raises(TrainerFailure, match="modulesToSave does not fit") as caught:
        make_trainable(load_model(tiny_model_dir, MethodType.QLORA, CPU), wish, MethodType.QLORA, seed=0)
    assert caught.value.reason is FailureReason.SPEC_INVALID


@pytest.mark.parametrize("lora", [{}, {"useDora": True}, {"useRslora": True, "modulesToSave": ["lm_head"]}])
def test_a_continued_adapter_starts_with_its_saved_weights(tmp_path: Path, lora: dict[str, Any]) -> None:
    first = adapted(**lora)
    for parameter in trainable_parameters(first):
        parameter.data += 0.02
    first.save_pretrained(tmp_path, save_embedding_layers=False)
    method = Method.model_validate({"lora": {**lora, "dropout": 0.1}})
    second = make_trainable(tiny_llama(torch.float32), method, MethodType.LORA, seed=0, adapter=tmp_path)
    assert_same(first, second)
    with pytest.raises(AssertionError):
        assert_same(first, tiny_llama(torch.float32))
    assert [p.shape for p in trainable_parameters(second)] == [p.shape for p in trainable_parameters(first)]
    assert second.peft_config["default"].lora_dropout == 0.1
    second.save_pretrained(tmp_path / "second", save_embedding_layers=False)
    assert_same(second, PeftModel.from_pretrained(tiny_llama(torch.float32), tmp_path / "second"))


@pytest.mark.parametrize(
    ("family", "lora"),
    [(phi, {"bias": "All"}), (phi, {"modulesToSave": ["lm_head"]}), (llama_tied, {"modulesToSave": ["embed_tokens"]})],
)
def test_continuing_on_a_bf16_base_rounds_no_trained_weight(
    tmp_path: Path, family: Family, lora: dict[str, Any]
) -> None:
    base = save_family(family, tmp_path / "base")
    first = adapted(load_model(base, MethodType.LORA, CPU), **lora)
    for parameter in trainable_parameters(first):
        parameter.data += 0.02 / 3
    first.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    method = Method.model_validate({"lora": lora})
    model = load_model(base, MethodType.LORA, CPU)
    second = make_trainable(model, method, MethodType.LORA, seed=0, adapter=tmp_path / "adapter")
    trained = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in (first, second)]
    assert [name for name, weight in trained[0].items() if not torch.equal(weight, trained[1][name])] == []


def test_an_adapter_that_does_not_fit_4_bit_weights_is_an_invalid_spec(tiny_model_dir: Path, tmp_path: Path) -> None:
    base = load_model(tiny_model_dir, MethodType.LORA, CPU)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights="pissa")
    get_peft_model(base, config).save_pretrained(tmp_path, save_embedding_layers=False)
    four_bit = load_model(tiny_model_dir, MethodType.QLORA, CPU)
    with pytest.raises(TrainerFailure, match=r"method\.lora\.from does not fit") as caught:
        make_trainable(four_bit, Method(), MethodType.QLORA, seed=0, adapter=tmp_path)
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_gpt2s_transposed_matrices_are_trained(tmp_path: Path) -> None:
    model = adapted(load_model(save_family(gpt2, tmp_path), MethodType.LORA, CPU))
    assert model.peft_config["default"].fan_in_fan_out
    adapted_modules = {n.split(".")[-4] for n, p in model.named_parameters() if "lora_A" in n}
    assert adapted_modules == {"c_attn", "c_proj", "c_fc"}


@torch.no_grad()
def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Asserts that both models give the same losses, up to the rounding of bf16."""
    with fresh_accelerator("bf16").autocast():
        torch.testing.assert_close(
            token_losses(one.eval(), BATCH), token_losses(other.eval(), BATCH), rtol=5e-3, atol=0
        )
