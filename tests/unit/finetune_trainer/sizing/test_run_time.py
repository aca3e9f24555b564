"""The predicted time and cost."""

from dataclasses import replace

import pytest

from finetune_trainer.sizing.memory import Setup, adapter_parameters
from finetune_trainer.sizing.run_time import (
    Work,
    answering_seconds,
    cost,
    divided,
    peak_flops,
    total_seconds,
    training_flops,
    training_seconds,
)
from finetune_trainer.sizing.traffic import Layout, gathering_seconds, summing_seconds
from tests.unit.finetune_trainer.sizing.test_memory import SHAPE

H100 = 989e12
WORK = Work(
    tokens=1_000_000,
    labels=0,
    context=0.0,
    steps=125,
    rows=8,
    micro_batches=500,
    answered=200,
    rounds=1,
    prompt_tokens=400,
    answer_tokens=112,
    answering=16_384,
    loads=1,
)


@pytest.mark.parametrize(
    ("names", "teraflops"),
    [
        (["h100-80gb"], 989),
        (["gpu", "nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3"], 989),
        (["gpu", "NVIDIA-H100-PCIe"], 756),
        (["gpu", "NVIDIA-A100-SXM4-80GB"], 312),
        (["gpu", "NVIDIA-RTX-6000-Ada-Generation"], 364),
        (["gpu", "NVIDIA-A10G"], 70),
        (["a10"], 125),
        (["gpu"], None),
        (["slice", "nvidia.com/mig-1g.10gb", "NVIDIA-H100-80GB-HBM3"], None),
    ],
)
def test_a_gpu_is_known_by_its_products_name(names: list[str], teraflops: float | None) -> None:
    assert peak_flops(names) == (teraflops and teraflops * 1e12)


def test_lora_computes_4nd_and_full_6nd() -> None:
    adapters = 6 * 41_943_040 * WORK.tokens
    forward = 2 * SHAPE.linear_parameters * WORK.tokens
    assert training_flops(SHAPE, Setup("LoRA"), WORK) == 2 * forward + adapters
    assert training_flops(SHAPE, Setup("Full"), WORK) == 3 * forward
    assert training_flops(SHAPE, Setup("Full", checkpointing=True), WORK) == 4 * forward


def test_attention_and_the_head_where_something_is_learned_come_on_top() -> None:
    least = training_flops(SHAPE, Setup("Full"), WORK)
    attention = training_flops(SHAPE, Setup("Full"), replace(WORK, context=2048.0)) - least
    # 4 x tokens before x width for each layer and token, and half of the context lies before on average.
    assert attention == 3 * 4 * 1024 * 4096 * 32 * WORK.tokens
    head = training_flops(SHAPE, Setup("Full"), replace(WORK, labels=1000)) - least
    assert head == 6 * 1000 * 4096 * 128256


def test_lora_of_8b_on_an_h100_trains_about_as_fast_as_is_published() -> None:
    assert 9_000 < WORK.tokens / training_seconds(SHAPE, Setup("LoRA"), WORK, H100) < 15_000


def test_a_small_model_is_bound_by_starting_its_kernels() -> None:
    few = replace(WORK, tokens=1000)
    assert training_seconds(SHAPE, Setup("LoRA"), few, H100) == 500 * 32 * 2e-3


def test_the_whole_job_loads_and_answers_too() -> None:
    training = training_seconds(SHAPE, Setup("LoRA"), WORK, H100)
    loading = 2 * SHAPE.parameters / 500e6
    # 16,384 tokens at a time are 32 rows of 512: 7 batches.
    answering = 7 * 112 * 32 * 1e-3
    once = 60 + loading + answering + training
    assert total_seconds(SHAPE, Setup("LoRA"), WORK, H100) == pytest.approx(once)
    assert total_seconds(SHAPE, Setup("LoRA"), replace(WORK, loads=2), H100) == pytest.approx(once + loading)


def test_cost_is_a_decimal_string() -> None:
    assert cost(1800, "2.50") == "1.25"
    assert cost(1, "2.50") == "0.00"


def test_gpus_share_the_rows_and_each_loads_the_model() -> None:
    work = divided(WORK, 4)
    assert (work.tokens, work.micro_batches, work.answered, work.loads) == (250_000, 125, 50, 1)
    assert divided(WORK, 1) == WORK
    assert total_seconds(SHAPE, Setup("LoRA"), work, H100) < total_seconds(SHAPE, Setup("LoRA"), WORK, H100)


@pytest.mark.parametrize(("gpus", "share"), [(3, 3 / 8), (8, 1 / 8), (16, 1 / 8), (256, 1 / 8)])
def test_a_gpu_has_whole_rows_and_a_micro_batch_in_each_step(gpus: int, share: float) -> None:
    work = divided(WORK, gpus)
    assert work.tokens == share * WORK.tokens
    assert work.micro_batches == WORK.steps * (2 if gpus == 3 else 1)


def test_a_job_without_training_has_no_micro_batches() -> None:
    work = divided(replace(WORK, steps=0, micro_batches=0, tokens=0), 4)
    assert (work.tokens, work.micro_batches) == (0, 0)


def test_each_model_answers_in_batches_of_its_own() -> None:
    once = answering_seconds(SHAPE, Setup(), replace(WORK, answered=1))
    assert once == 112 * 32 * 1e-3
    assert answering_seconds(SHAPE, Setup(), replace(WORK, answered=32, rounds=5)) == 5 * once
    assert answering_seconds(SHAPE, Setup(), replace(WORK, answered=33, rounds=5)) == 10 * once
    assert answering_seconds(SHAPE, Setup(), replace(WORK, answered=0)) == 0


def test_weights_for_images_are_loaded_but_take_no_part_in_a_step() -> None:
    both = replace(SHAPE, other_parameters=10**9)
    more = total_seconds(both, Setup(), WORK, H100) - total_seconds(SHAPE, Setup(), WORK, H100)
    assert more == pytest.approx(WORK.loads * 2 * 10**9 / 500e6)
    assert training_seconds(both, Setup(), WORK, H100) == training_seconds(SHAPE, Setup(), WORK, H100)


@pytest.mark.parametrize(("layout", "rate"), [(Layout(4), 50e9), (Layout(4, 2), 3.125e9), (Layout(4, 4), 3.125e9)])
def test_sharded_weights_are_gathered_for_each_micro_batch_and_each_token_of_an_answer(
    layout: Layout, rate: float
) -> None:
    one = replace(WORK, tokens=100, steps=0, micro_batches=100, answered=1)
    whole, sharded = Setup(), Setup(shards=4)
    once = 0.75 * 2 * SHAPE.parameters / rate
    assert training_seconds(SHAPE, whole, one, 989e12, layout) == pytest.approx(100 * 32 * 2e-3)
    assert training_seconds(SHAPE, sharded, one, 989e12, layout) == pytest.approx(100 * 2 * once)
    full = replace(sharded, method="Full")
    assert training_seconds(SHAPE, full, one, 989e12, layout) == pytest.approx(100 * 4 * once)
    more = total_seconds(SHAPE, sharded, one, 989e12, layout) - total_seconds(SHAPE, whole, one, 989e12, layout)
    assert more == pytest.approx(one.answer_tokens * (once - 32e-3) + 100 * (2 * once - 32 * 2e-3))


@pytest.mark.parametrize(("layout", "rate"), [(Layout(4), 50e9), (Layout(4, 2), 3.125e9)])
def test_gradients_that_are_not_sharded_are_added_up_once_in_each_step(layout: Layout, rate: float) -> None:
    ten, none = replace(WORK, steps=10), replace(WORK, steps=0)

    def summing(setup: Setup) -> float:
        return training_seconds(SHAPE, setup, ten, H100, layout) - training_seconds(SHAPE, setup, none, H100, layout)

    each = 2 * 0.75 * 4 / rate
    assert summing(Setup("Full")) == pytest.approx(10 * each * SHAPE.parameters)
    for setup in (Setup(), Setup(shards=4), Setup("QLoRA")):
        assert summing(setup) == pytest.approx(10 * each * adapter_parameters(SHAPE, setup))
    head = Setup(modules_to_save=("lm_head",))
    assert summing(head) == pytest.approx(10 * each * (adapter_parameters(SHAPE, head) + 4096 * 128256))
    assert summing(Setup("Full", shards=4)) == 0, "the backward pass adds them up"


def test_one_gpu_sends_nothing() -> None:
    for setup in (Setup(), Setup("Full")):
        alone = training_seconds(SHAPE, setup, replace(WORK, steps=0), H100)
        assert training_seconds(SHAPE, setup, WORK, H100) == alone


def test_a_70b_model_over_two_nodes_waits_for_the_network() -> None:
    """15/16 of 141 GB pass each link of the ring: 42 s over 25 Gb/s, and 2.6 s in one machine."""
    large = replace(SHAPE, parameters=70_553_706_496, layers=80)
    shards = Setup(shards=16)
    assert gathering_seconds(large, shards, Layout(16, 2)) == pytest.approx(42.3, abs=0.1)
    assert gathering_seconds(large, shards, Layout(16, 1)) == pytest.approx(2.6, abs=0.1)
    assert summing_seconds(SHAPE, Setup("Full"), Layout(16, 2)) == pytest.approx(19.3, abs=0.1)
