"""Loading the base model, and attaching the adapter."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, GPT2Config, OPTConfig, PreTrainedConfig

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import ComputeDtype, Method, MethodType, Quantization, QuantizationType
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.loading import (
    choose_device,
    greedy_generation,
    load_model,
    mixed_precision,
    switch_dropout_off,
)
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer.conftest import save_model
from tests.unit.finetune_trainer.small_runs import VOCABULARY, examples, fresh_accelerator, tiny_llama

CPU = torch.device("cpu")
METHODS = [MethodType.LORA, MethodType.QLORA]


@pytest.mark.parametrize("method", METHODS)
def test_every_adapter_weight_gets_a_gradient_after_an_evaluation(tiny_model_dir: Path, method: MethodType) -> None:
    model = load_model(tiny_model_dir, method, CPU).eval()
    batch, accelerator = micro_batch(examples([24, 40]), CPU), fresh_accelerator("bf16")
    with torch.no_grad(), accelerator.autocast():
        before = token_losses(model, batch).mean()
    tuned = attach_lora(model, Method(type=method), seed=0).train()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # B starts at 0, and then the gradient of A is always 0
            torch.nn.init.normal_(parameter, std=0.02)
    with accelerator.autocast():
        loss = token_losses(tuned, batch).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(before.item(), rel=0.1)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_qlora_stores_weights_as_double_quantized_nf4_and_computes_in_bf16(tiny_model_dir: Path) -> None:
    layers = [
        module
        for module in load_model(tiny_model_dir, MethodType.QLORA, CPU).modules()
        if isinstance(module, Linear4bit)
    ]
    assert len(layers) == 2 * 7, "every linear layer but the output head"
    for layer in layers:
        assert layer.weight.quant_type == "nf4"
        assert layer.weight.quant_state.nested, "double quantization"
        assert layer.compute_dtype == torch.bfloat16


def test_weights_are_quantized_as_the_spec_defines(tiny_model_dir: Path) -> None:
    wish = Quantization(type=QuantizationType.FP4, double_quant=False, compute_dtype=ComputeDtype.FLOAT32)
    model = load_model(tiny_model_dir, MethodType.QLORA, CPU, wish)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        assert layer.weight.quant_type == "fp4"
        assert not layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.float32


def test_only_float32_computes_without_rounding_to_bf16() -> None:
    fp32 = Quantization(compute_dtype=ComputeDtype.FLOAT32)
    assert mixed_precision(MethodType.QLORA, fp32) == "no"
    assert mixed_precision(MethodType.QLORA, Quantization()) == "bf16"
    assert mixed_precision(MethodType.QLORA, None) == "bf16"
    assert mixed_precision(MethodType.FULL, None) == "bf16"


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_is_fp32_on_every_linear_layer_over_frozen_weights(
    tiny_model_dir: Path, method: MethodType
) -> None:
    tuned = attach_lora(load_model(tiny_model_dir, method, CPU), Method(type=method), seed=0)
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name for name in trained)
    assert {parameter.dtype for parameter in trainable_parameters(tuned)} == {torch.float32}


def test_rank_scale_dropout_and_modules_come_from_the_spec(tiny_model_dir: Path) -> None:
    method = Method.model_validate({"lora": {"r": 4, "alpha": 12, "dropout": 0.1, "targetModules": ["q_proj"]}})
    config = attach_lora(tiny_llama(torch.float32), method, seed=0).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (4, 12, 0.1, {"q_proj"})


def test_a_module_that_the_model_does_not_have_is_an_invalid_spec() -> None:
    method = Method.model_validate({"lora": {"targetModules": ["query_key_value"]}})
    with pytest.raises(TrainerFailure, match=r"method\.lora\.targetModules.*query_key_value") as caught:
        attach_lora(tiny_llama(), method, seed=0)
    assert caught.value.reason is FailureReason.SPEC_INVALID


def test_missing_weights_end_the_job(tiny_model_dir: Path, tmp_path: Path) -> None:
    save_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerFailure, match=r"1 .* missing .* model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        load_model(tmp_path, MethodType.LORA, CPU)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_weights_as_pickles_are_not_loaded(tmp_path: Path) -> None:
    save_model(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TrainerFailure) as caught:
        load_model(tmp_path, MethodType.LORA, CPU)
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_usable_gpu_is_a_gpu_fault_unless_the_cpu_is_allowed() -> None:
    with pytest.raises(TrainerFailure, match="The pod found no working GPU") as caught:
        choose_device(allow_cpu=False)
    assert caught.value.reason is FailureReason.GPU_FAULT
    assert choose_device(allow_cpu=True) == (CPU, "cpu")


def test_generation_is_greedy_for_every_generation_config() -> None:
    model = tiny_llama()
    model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=1.3, eos_token_id=[3, 9])
    generation = greedy_generation(model, (7,), max_new_tokens=5)
    merged, _ = model._prepare_generation_config(generation)
    assert merged.eos_token_id == [3, 7, 9], "its own end tokens stay"
    assert not merged.do_sample
    assert merged.repetition_penalty in (None, 1.0)
    assert merged.max_new_tokens == 5


DROPPING = [
    GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=3, eos_token_id=3),
    OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        dropout=0.5,
        attention_dropout=0.5,
        layerdrop=0.5,
    ),
]


@torch.no_grad()
@pytest.mark.parametrize("config", DROPPING, ids=lambda config: config.model_type)
def test_the_base_models_own_dropout_is_off(config: PreTrainedConfig, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokens = torch.arange(4, 40)[None]
    evaluated, trained, dropped = (
        model.train(training)(input_ids=tokens, use_cache=False).logits
        for model, training in (
            (load_model(tmp_path, MethodType.LORA, CPU), False),
            (load_model(tmp_path, MethodType.LORA, CPU), True),
            (AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), True),
        )
    )
    assert torch.equal(trained, evaluated)
    assert not torch.equal(dropped, evaluated), "Transformers' own does drop"


def test_dropout_is_off_in_every_part_of_a_model() -> None:
    config = Gemma3Config(text_config={"attention_dropout": 0.5}, vision_config={"attention_dropout": 0.5})
    switch_dropout_off(config)
    assert config.text_config.attention_dropout == config.vision_config.attention_dropout == 0
