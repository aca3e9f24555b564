"""The predicted memory matches published sizes and depends on the right settings."""

from dataclasses import replace

import pytest

from finetune_trainer.sizing.device import CPU, CUDA
from finetune_trainer.sizing.memory import (
    Load,
    Setup,
    TrainedMethod,
    _logits,
    adapter_parameters,
    base_memory,
    first_fit,
    predict,
)
from finetune_trainer.sizing.model_shape import ModelShape, model_shape

GIB = 1024**3


def llama_3_8b() -> ModelShape:
    """Meta's Llama-3.1-8B, from its config.json and the shapes of its weights."""
    block = {
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
        "input_layernorm": (4096,),
        "post_attention_layernorm": (4096,),
    }
    sizes: dict[str, tuple[int, ...]] = {
        f"model.layers.{i}.{name}.weight": size for i in range(32) for name, size in block.items()
    }
    sizes |= {
        "model.embed_tokens.weight": (128256, 4096),
        "model.norm.weight": (4096,),
        "lm_head.weight": (128256, 4096),
    }
    config = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return model_shape(config, sizes)


SHAPE = llama_3_8b()
LOAD = Load(tokens=2048, labels=512)


def test_the_shape_is_read_from_config_and_headers() -> None:
    assert SHAPE.parameters == 8_030_261_248, "as its model card says"
    assert (SHAPE.query, SHAPE.key_value, SHAPE.norms, SHAPE.gated, SHAPE.rms) == (4096, 1024, 2, True, True)
    assert SHAPE.linear_parameters == 6_979_321_856


def test_a_tied_head_is_counted_once() -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
    sizes = {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    assert model_shape(config, sizes).parameters == 80
    assert model_shape(config, sizes).tied
    assert not SHAPE.tied
    assert model_shape(config | {"tie_word_embeddings": False}, sizes).parameters == 160


@pytest.mark.parametrize(
    ("family", "tied"),
    [("llama", False), ("qwen2", False), ("mistral", False), ("gemma3_text", True), ("gpt2", True), ("unknown", True)],
)
def test_a_config_that_does_not_say_whether_the_head_is_tied_has_the_familys_default(family: str, tied: bool) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
    sizes = {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    found = model_shape(config | {"model_type": family}, sizes)
    assert (found.tied, found.parameters) == (tied, 80 if tied else 160)
    assert model_shape(config | {"model_type": family, "tie_word_embeddings": not tied}, sizes).tied is not tied


def test_a_head_with_a_bias_is_known_by_it() -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
    head = {"lm_head.weight": (10, 8), "lm_head.bias": (10,)}
    assert model_shape(config, head).head_bias
    assert not model_shape(config, {"lm_head.weight": (10, 8), "model.norm.bias": (8,)}).head_bias


def test_names_of_other_families_are_known() -> None:
    mpt = {"d_model": 8, "n_layers": 3, "n_heads": 2, "vocab_size": 10}
    assert (model_shape(mpt, {}).layers, model_shape(mpt, {}).query) == (3, 8)
    mamba = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
    assert model_shape(mamba, {}).hidden == 8, "it has no heads"


def test_a_config_without_a_width_is_named() -> None:
    with pytest.raises(ValueError, match=r"config\.json must set hidden_size to a positive integer"):
        model_shape({}, {})


def test_an_adapter_of_rank_16_on_all_linear_layers_of_llama_3_8b_has_42_million_parameters() -> None:
    assert adapter_parameters(SHAPE, Setup()) == 41_943_040
    assert adapter_parameters(SHAPE, Setup(target_modules=("q_proj", "v_proj"))) == 6_815_744


def test_four_bit_weights_take_the_4_127_bits_of_the_qlora_paper() -> None:
    frozen = predict(SHAPE, Setup("QLoRA"), LOAD).weights
    assert frozen == pytest.approx(SHAPE.linear_parameters * 4.127 / 8 + 1_050_939_392 * 2, rel=1e-4)


def test_scales_that_are_not_quantized_and_numbers_in_fp32_take_more() -> None:
    usual, scales, wide = (
        predict(SHAPE, setup, LOAD)
        for setup in (Setup("QLoRA"), Setup("QLoRA", double_quant=False), Setup("QLoRA", float32=True))
    )
    assert scales.weights == pytest.approx(SHAPE.linear_parameters * 4.5 / 8 + 1_050_939_392 * 2, rel=1e-4)
    assert wide.weights - usual.weights == pytest.approx(1_050_939_392 * 2, rel=1e-4), "embedding, head and norms"
    assert 1.6 < wide.activations / usual.activations < 2
    assert usual.trainable - wide.trainable == 2 * 41_943_040, "nothing is cast"
    for method in ("LoRA", "Full"):
        setup = Setup(method, double_quant=False, float32=True)
        assert predict(SHAPE, setup, LOAD) == predict(SHAPE, Setup(method), LOAD), "QLoRA's alone"


def test_full_training_holds_18_bytes_a_parameter_and_12_with_8_bit_moments_which_the_embedding_has_not() -> None:
    embedding = 4096 * 128256
    for optimizer, each, wider in (("AdamW", 18, 0), ("PagedAdamW8bit", 12, 6)):
        held = predict(SHAPE, Setup("Full", optimizer), LOAD).trainable
        assert held == pytest.approx(each * SHAPE.parameters + wider * embedding, rel=0.003)


def test_an_embedding_trained_whole_has_moments_in_fp32_and_is_the_head_where_they_are_tied() -> None:
    tied, held = replace(SHAPE, tied=True), {}
    for shape, modules in ((s, m) for s in (SHAPE, tied) for m in (("lm_head",), ("embed_tokens",))):
        setup = Setup(optimizer="PagedAdamW8bit", modules_to_save=modules)
        held[shape.tied, modules] = predict(shape, setup, LOAD).trainable
    head = held[False, ("lm_head",)]
    wide = {bytes for key, bytes in held.items() if key != (False, ("lm_head",))}
    assert len(wide) == 1
    assert wide.pop() - head == pytest.approx(6 * 4096 * 128256, rel=0.01)
    both = Setup(optimizer="PagedAdamW8bit", modules_to_save=("lm_head", "embed_tokens"))
    assert predict(tied, both, LOAD).trainable == held[True, ("lm_head",)]
    many = Load(8192, 8192)
    assert predict(tied, Setup(modules_to_save=("embed_tokens",)), many).working == 8192 * 128256 * 10
    assert predict(SHAPE, Setup(modules_to_save=("embed_tokens",)), many).working < 4096 * 128256 * 10


@pytest.mark.parametrize(
    ("setup", "low", "high"),
    [
        # 15 GiB of weights alone: what is said everywhere is that 24 GB need checkpointing or QLoRA, and that training
        # every weight with AdamW in fp32 does not fit 141 GB.
        (Setup("LoRA"), 25, 32),
        (Setup("LoRA", checkpointing=True), 18, 22),
        (Setup("QLoRA", checkpointing=True), 8, 11.5),
        (Setup("Full", checkpointing=True), 135, 150),
    ],
)
def test_the_predicted_memory_of_llama_3_8b_equals_known_figures(setup: Setup, low: float, high: float) -> None:
    assert low < predict(SHAPE, setup, LOAD).total / GIB < high


def test_checkpointing_costs_no_less_than_one_layer() -> None:
    kept = [predict(SHAPE, Setup(checkpointing=on), LOAD).activations for on in (False, True)]
    assert kept[0] / SHAPE.layers < kept[1] < kept[0] / 8


def test_memory_grows_with_tokens_labels_rank_and_dropout() -> None:
    least = predict(SHAPE, Setup(), LOAD).total
    assert predict(SHAPE, Setup(), replace(LOAD, tokens=4096)).total > least
    assert predict(SHAPE, Setup(), Load(2048, 2048)).total > least
    assert predict(SHAPE, Setup(rank=64), LOAD).total > least
    assert predict(SHAPE, Setup(dropout=True), LOAD).total > least
    assert predict(SHAPE, Setup(dora=True), LOAD).total > least


def test_a_frozen_head_is_applied_a_chunk_at_a_time_and_any_other_to_all_labels_at_once() -> None:
    many, more = (Load(8192, labels) for labels in (4096, 8192))
    capped = replace(SHAPE, bare_logits=False)
    biased = replace(SHAPE, head_bias=True)
    for shape, setup in (
        (SHAPE, Setup("Full")),
        (SHAPE, Setup(modules_to_save=("lm_head",))),
        (SHAPE, Setup(target_modules=("q_proj", "lm_head"))),
        (biased, Setup(biases=True)),
        (capped, Setup()),
    ):
        assert predict(shape, setup, more).working == 8192 * 128256 * 10
    for shape, setup in ((biased, Setup()), (SHAPE, Setup(biases=True))):
        assert predict(shape, setup, more).working < 4096 * 128256 * 10
    assert predict(SHAPE, Setup(), many).working < 4096 * 128256 * 10
    head = [_logits(SHAPE, Setup(), load, CUDA) for load in (many, more)]
    assert head[1] - head[0] == 4096 * 4096 * 4, "hidden states and their gradient"
    assert head[0] == 2**26 * 10 + 4096 * 4096 * 4


def test_modules_trained_whole_cost_18_bytes_a_parameter() -> None:
    head = 4096 * 128256
    least, one, two = (
        predict(SHAPE, Setup(modules_to_save=modules), LOAD).trainable
        for modules in ((), ("lm_head",), ("embed_tokens", "q_proj"))
    )
    assert one - least == 18 * head
    assert two - least == 18 * (head + 32 * 4096 * 4096)


def test_scores_that_are_capped_grow_with_the_square_of_the_tokens() -> None:
    capped = replace(SHAPE, softcapped_heads=32)
    one, two = (predict(capped, Setup(), Load(t, 1)).activations for t in (2048, 4096))
    assert two > 3 * one
    assert predict(SHAPE, Setup(), Load(4096, 1)).activations == 2 * predict(SHAPE, Setup(), Load(2048, 1)).activations


@pytest.mark.parametrize(
    ("gibibytes", "chosen"),
    [
        (80, (Setup("LoRA"), 2048)),
        (27, (Setup("LoRA"), 1024)),
        (16, (Setup("QLoRA", checkpointing=True), 2048)),
        (8, None),
    ],
)
def test_the_first_setup_that_fits_is_taken_with_the_largest_micro_batch_that_does(
    gibibytes: int, chosen: tuple[Setup, int] | None
) -> None:
    setups = [Setup("LoRA"), Setup("QLoRA", checkpointing=True)]
    plan = first_fit(SHAPE, setups, [LOAD, Load(1024, 512)], gibibytes * GIB)
    assert (plan and (plan.setup, plan.load.tokens)) == chosen
    assert plan is None or plan.memory == predict(SHAPE, plan.setup, plan.load)


def test_a_model_of_8b_can_be_measured_in_bf16_on_a_card_of_24_gb_and_not_on_one_of_16() -> None:
    needed = base_memory(SHAPE, 2048)
    assert 16 * GIB < needed < 23_028 * 1024**2, "an A10G"
    assert base_memory(SHAPE, 4096) > needed, "more answers at a time"
    assert base_memory(replace(SHAPE, parameters=SHAPE.parameters + 10**9), 2048) == needed + 2 * 10**9


def test_several_gpus_need_memory_for_their_connections_with_whole_weights_and_with_shards() -> None:
    alone = predict(SHAPE, Setup(), LOAD)
    for several in (Setup(ranks=2), Setup(ranks=8)):
        assert replace(alone, overhead=alone.overhead + GIB) == predict(SHAPE, several, LOAD)
        assert predict(SHAPE, Setup(), LOAD, CPU) == predict(SHAPE, several, LOAD, CPU)
    assert predict(SHAPE, Setup(shards=8), LOAD).overhead == alone.overhead + GIB


def test_shards_divide_the_layers_under_lora_and_leave_the_adapter_and_the_embeddings_whole() -> None:
    whole, sharded = (predict(SHAPE, Setup(checkpointing=True, shards=shards, ranks=4), LOAD) for shards in (1, 4))
    layers, outside = 2 * SHAPE.linear_parameters, 2 * (SHAPE.parameters - SHAPE.linear_parameters)
    assert whole.weights == layers + outside
    assert sharded.weights == pytest.approx(layers / 4 + 3 * layers / 32 + outside, abs=1)
    assert replace(sharded, weights=whole.weights) == whole


def test_shards_divide_16_bytes_a_parameter_under_full() -> None:
    sharded = predict(SHAPE, Setup("Full", shards=8), LOAD)
    outside = SHAPE.parameters - SHAPE.linear_parameters
    assert sharded.trainable == 2 * SHAPE.parameters
    assert sharded.weights == pytest.approx(12 * SHAPE.linear_parameters / 32 + 18 * outside, abs=1)


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
@pytest.mark.parametrize("shards", [1, 4])
def test_weights_for_images_add_2_bytes_each_on_every_gpu(method: TrainedMethod, shards: int) -> None:
    setup, both = Setup(method, shards=shards), replace(SHAPE, other_parameters=10**8)
    expected, found = predict(SHAPE, setup, LOAD), predict(both, setup, LOAD)
    assert found.weights - expected.weights == 2 * 10**8
    assert replace(found, weights=expected.weights) == expected
    assert base_memory(both, 2048) - base_memory(SHAPE, 2048) == 2 * 10**8


@pytest.mark.parametrize(
    ("setup", "possible"),
    [
        (Setup(), True),
        (Setup(optimizer="PagedAdamW8bit"), True),
        (Setup("Full"), True),
        (Setup("Full", optimizer="PagedAdamW8bit"), False),
        (Setup("QLoRA"), False),
    ],
)
def test_four_bit_weights_and_8_bit_moments_of_shards_cannot_be_sharded(setup: Setup, possible: bool) -> None:
    assert setup.can_shard is possible
