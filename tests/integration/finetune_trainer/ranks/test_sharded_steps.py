"""Sharded weights change nothing: not the loss, the gradient and the weights of a training, nor the answers."""

from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method, MethodType
from finetune_trainer.base.composite import is_tuned
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters import sharding
from finetune_trainer.model.parameters.loading import greedy_generation, load_model, load_tokenizer
from finetune_trainer.model.parameters.sharding import collected, decoder_layers, shard
from finetune_trainer.model.parameters.targets import train_whole
from finetune_trainer.model.parameters.trainable import make_trainable
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.ranks.gradients import clip_shards
from finetune_trainer.ranks.shards import is_shard, own_shard, release
from finetune_trainer.statistics.measurements import Measured
from tests.integration.finetune_trainer.proofs.runs import in_fp32
from tests.integration.finetune_trainer.ranks.courses import LENGTHS, Course, course, resumed_course, trainable
from tests.integration.finetune_trainer.ranks.processes import on_ranks
from tests.integration.finetune_trainer.ranks.test_same_steps import alone, distance
from tests.unit.finetune_trainer.model_families import ALONE, COMPOSITE, EXPERTS, FAMILIES, Family, save_family
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator

CPU = torch.device("cpu")
SHARDED = (False, LENGTHS, 5, True)
"""Arguments of a sharded course in fp32."""


@pytest.mark.thorough_for("4-*", "2-DoRA")
@pytest.mark.parametrize("method", ["LoRA", "LoRA, biases and head", "DoRA", "Full"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_losses_gradient_norms_and_weights_are_those_of_one_process(
    method: str, ranks: int, tiny_model_dir: Path
) -> None:
    whole = alone(tiny_model_dir, method)
    for part in on_ranks(ranks, course, tiny_model_dir, method, *SHARDED):
        assert part.losses == pytest.approx(whole.losses, rel=1e-5)
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert part.tokens == whole.tokens
        assert distance(part, whole) < 1e-5


@pytest.mark.thorough_for("LoRA")
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_in_bf16_with_gradient_checkpointing_the_norms_differ_by_less_than_5_in_1000(
    method: str, tiny_model_dir: Path
) -> None:
    whole = alone(tiny_model_dir, method, bf16=True)
    for part in on_ranks(2, course, tiny_model_dir, method, True, LENGTHS, 5, True, True):
        assert part.norms == pytest.approx(whole.norms, rel=5e-3)
        assert part.losses == pytest.approx(whole.losses, rel=5e-3)


@pytest.mark.thorough_for("LoRA")
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_rank_without_rows_takes_part_in_the_step(method: str, tiny_model_dir: Path) -> None:
    one_row_a_step = (tiny_model_dir, method, False, [24, 7, 40], 1)
    whole = on_ranks(1, course, *one_row_a_step)[0]
    for part in on_ranks(3, course, *one_row_a_step, True):
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert distance(part, whole) < 1e-5


def norms(folders: list[Path]) -> list[tuple[float, float]]:
    """The norm of the gradient of each model with whole and with sharded weights. Both ranks compute the same row."""
    found = []
    for folder in folders:
        pair = []
        for sharded in (False, True):
            model = in_fp32(load_model(folder, MethodType.FULL, CPU))
            train_whole(model)
            if sharded:
                shard(model, CPU, bf16=False)
            loss = token_losses(model, micro_batch(examples([24]), CPU)).sum()
            (loss / 2 if sharded else loss).backward()
            weights = [weight for weight in model.parameters() if weight.grad is not None]
            whole = float(torch.stack([own_shard(weight.grad).norm() for weight in weights]).norm())
            pair.append(clip_shards(weights, inf) if sharded else whole)
        found.append((pair[0], pair[1]))
    return found


def test_every_family_has_the_gradient_of_whole_weights(tmp_path: Path) -> None:
    families = [*FAMILIES, *EXPERTS, *COMPOSITE, *ALONE]
    folders = [save_family(family, tmp_path / family.__name__) for family in families]
    for family, (whole, sharded) in zip(families, on_ranks(2, norms, folders)[0], strict=True):
        assert sharded == pytest.approx(whole, rel=1e-5), family.__name__


@pytest.mark.thorough_for(
    "whole weights-*", "*-olmoe", "*-mixtral", "*-gpt_oss", "*-mistral3", "*_vl", "*-qwen3_5_with_images"
)
@pytest.mark.parametrize("family", [*EXPERTS, *COMPOSITE], ids=lambda family: family.__name__)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole weights", "sharded weights"])
def test_the_adapter_of_experts_or_of_a_language_model_is_that_of_one_process(
    family: Family, sharded: bool, tmp_path: Path
) -> None:
    arguments = (save_family(family, tmp_path), "LoRA without dropout", False, LENGTHS, 5)
    whole = on_ranks(1, course, *arguments)[0]
    assert whole.losses[-1] < whole.losses[0]
    for part in on_ranks(2, course, *arguments, sharded):
        assert part.losses == pytest.approx(whole.losses, rel=1e-5)
        assert part.norms == pytest.approx(whole.norms, rel=1e-5)
        assert part.weights.keys() == whole.weights.keys()
        assert distance(part, whole) < 1e-5


def sharded_parts(folder: Path) -> tuple[set[str], set[str], bool | None]:
    """The weights for images that are sharded, the weights of the language model that are not, and whether the weights
    collected on rank 0 are those of the files; None on another rank."""
    model, _ = trainable(folder, "Full", True, True)
    weights = dict(model.named_parameters())
    inside, shards = {*filter(is_tuned, weights)}, {name for name in weights if is_shard(weights[name])}
    copy, same = collected(model, folder, folder / "collected.weights"), None
    if copy is not None:
        same = all(map(torch.equal, copy.parameters(), load_model(folder, MethodType.FULL, CPU).parameters()))
    return shards - inside, inside - shards, same


@pytest.mark.thorough_for("mistral3", "*_vl", "qwen3_5_with_images")
@pytest.mark.parametrize("family", COMPOSITE, ids=lambda family: family.__name__)
def test_of_a_model_with_images_exactly_the_language_model_is_sharded_and_the_whole_is_collected(
    family: Family, tmp_path: Path
) -> None:
    first, second = on_ranks(2, sharded_parts, save_family(family, tmp_path))
    assert first == (set(), set(), True)
    assert second == (set(), set(), None)


def averaged(folder: Path) -> Course:
    """A sharded training with the settings for gradients that FSDP2 has by itself."""

    def as_usual(*given: object) -> None:
        real(*given)  # type: ignore[arg-type]
        given[0].set_gradient_divide_factor(2.0)  # type: ignore[attr-defined]

    real, sharding._shard = sharding._shard, as_usual
    return course(folder, "Full", *SHARDED)


def test_the_norms_tell_an_average_from_a_sum(tiny_model_dir: Path) -> None:
    whole, part = alone(tiny_model_dir, "Full"), on_ranks(2, averaged, tiny_model_dir)[0]
    assert part.norms[0] == pytest.approx(whole.norms[0] / 2, rel=1e-3)


@pytest.mark.thorough_for("LoRA")
@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_state_does_not_depend_on_ranks_or_shards(method: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    expected = on_ranks(1, resumed_course, tiny_model_dir, method, False, tmp_path / "whole", 8)[0]
    state = tmp_path / "moved"
    for last, (ranks, sharded) in enumerate([(1, False), (2, True), (4, True), (2, False), (1, False)], start=1):
        found = on_ranks(ranks, resumed_course, tiny_model_dir, method, sharded, state, 8 if last == 5 else last)[0]
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert distance(found, expected) < 1e-5


def measured(folder: Path, sharded: bool, adapter: bool, lengths: list[int]) -> Measured:
    """The measurement of a model by all ranks."""
    model = load_model(folder, MethodType.LORA, CPU)
    generation = greedy_generation(model, [], 6)
    if adapter:
        model = make_trainable(model, Method(), MethodType.LORA, seed=0)
    if sharded:
        shard(model, CPU, bf16=True)
    evaluator = Evaluator(load_tokenizer(folder), 32, generation, fresh_accelerator("bf16"))
    return evaluator.measure("the model", model, examples(lengths))


@pytest.mark.thorough_for("*-False", "uneven*")
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("lengths", [[24, 7, 40, 12, 33], [24]], ids=["uneven shares", "ranks without rows"])
def test_a_measurement_by_several_ranks_is_that_of_one(adapter: bool, lengths: list[int], tiny_model_dir: Path) -> None:
    whole = on_ranks(1, measured, tiny_model_dir, False, adapter, lengths)[0]
    for part in on_ranks(3, measured, tiny_model_dir, True, adapter, lengths):
        assert part.answers == whole.answers
        assert part.labels.tolist() == whole.labels.tolist()
        assert np.allclose(part.losses, whole.losses, rtol=1e-3)


def parts(folder: Path, method: str) -> tuple[int, int, int, bool | None]:
    """The numbers that this rank has before and after `release`, those of the model, and whether the weights collected
    on rank 0 are those of the files; None on another rank."""
    model, _ = trainable(folder, method, False, True)
    tensors = list(model.parameters())
    own = sum(own_shard(tensor).numel() for tensor in tensors)
    same, copy = None, collected(model, folder, folder / "collected.weights") if method == "Full" else None
    if copy is not None:
        files = load_model(folder, MethodType.FULL, CPU)
        same = all(map(torch.equal, copy.parameters(), files.parameters()))
    release(model)
    left = sum(own_shard(tensor).untyped_storage().nbytes() for tensor in tensors)
    return own, left, sum(tensor.numel() for tensor in tensors), same


def test_each_rank_has_a_share_of_the_weights_and_rank_0_can_collect_them(tiny_model_dir: Path) -> None:
    (own, left, whole, same), (other, _, _, none) = on_ranks(2, parts, tiny_model_dir, "Full")
    assert own + other == whole
    assert left == 0
    assert (same, none) == (True, None)
    (own, *_), (other, _, whole, _) = on_ranks(2, parts, tiny_model_dir, "LoRA")
    assert own < whole < own + other, "the adapter, the embedding and the head are whole on each rank"


def test_a_model_whose_layers_are_not_known_is_refused() -> None:
    with pytest.raises(
        TrainerFailure, match="Linear cannot be sharded over GPUs, because its layers are not"
    ) as caught:
        decoder_layers(nn.Linear(2, 2))
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED
