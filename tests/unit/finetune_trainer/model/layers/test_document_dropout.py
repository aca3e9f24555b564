"""The dropout mask depends only on seed, step, document and layer."""

from itertools import combinations
from math import inf

import pytest
import torch
from torch import Tensor, nn

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import Method
from finetune_trainer.model.batches import micro_batch, micro_batches
from finetune_trainer.model.layers.document_dropout import document_masks
from finetune_trainer.model.parameters.trainable import attach_lora
from finetune_trainer.pod.failure import TrainerFailure
from tests.unit.finetune_trainer.small_runs import example, examples, tiny_llama

CPU = torch.device("cpu")
ROWS = examples([24, 7, 40, 12])
FEATURES = 512


def adapted(dropout: float) -> nn.Module:
    """A model with two adapted layers in training mode."""
    lora = {"dropout": dropout, "targetModules": ["q_proj"]}
    return attach_lora(tiny_llama(torch.float32), Method.model_validate({"lora": lora}), seed=0).train()


def dropouts(model: nn.Module) -> list[nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


def outputs(p: float = 0.3, seed: int = 0, step: int = 0, tokens: int = 1000) -> list[list[Tensor]]:
    """The output for an input of ones, for each layer and each document, shape [tokens of the document, FEATURES]."""
    model = adapted(p)
    remains: list[list[Tensor]] = [[torch.empty(0)] * len(ROWS) for _ in dropouts(model)]
    for batch in micro_batches(ROWS, tokens, inf, CPU):
        with document_masks(batch, seed, step):
            for layer, dropout in zip(remains, dropouts(model), strict=True):
                packed = dropout(torch.ones(1, sum(batch.document_lengths), FEATURES))[0]
                for place, document in zip(batch.places, packed.split(batch.document_lengths), strict=True):
                    layer[place] = document
    return remains


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of the inputs that both masks drop or both keep, in their common rows."""
    rows = min(len(one), len(other))
    return ((one[:rows] == 0) == (other[:rows] == 0)).float().mean().item()


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_inputs_is_p_and_the_rest_is_scaled_up(p: float) -> None:
    for document in outputs(p)[0]:
        assert set(document.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
        noise = 5 * (p * (1 - p) / document.numel()) ** 0.5
        assert (document == 0).float().mean().item() == pytest.approx(p, abs=noise)
    first = outputs(p)[0][2]
    for share in ((first == 0).float().mean(dim=0), (first == 0).float().mean(dim=1)):
        assert share.std() > 0, "no token and no feature is dropped as a whole"
        assert share.mean() == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("tokens", [1, 40, 52])
def test_the_mask_does_not_depend_on_other_documents_in_the_micro_batch(tokens: int) -> None:
    for whole, split in zip(outputs(), outputs(tokens=tokens), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))


def test_masks_of_different_documents_layers_steps_and_seeds_are_independent() -> None:
    by_chance = 0.3**2 + 0.7**2
    (documents, layer), (step, _), (seed, _) = outputs(), outputs(step=1), outputs(seed=1)
    masks = [*documents, layer[2], step[2], seed[2]]
    for one, other in combinations(masks, 2):
        assert agreement(one, other) == pytest.approx(by_chance, abs=0.04)
    for token in range(1, 40):
        assert agreement(documents[2][:1], documents[2][token : token + 1]) == pytest.approx(by_chance, abs=0.12)


def test_the_random_numbers_never_change() -> None:
    # If a new PyTorch version gave other numbers, a job resumed with it would use other masks.
    mask = (outputs(p=0.5, seed=7, step=11)[1][3] == 0)[:2, :24].int().tolist()
    assert ["".join(map(str, row)) for row in mask] == ["011110101110011110010101", "110110100111010101101111"]


def test_the_gradient_has_the_same_mask_as_the_input() -> None:
    model, x = adapted(0.5), torch.ones(1, 31, 8, dtype=torch.float64, requires_grad=True)
    with document_masks(micro_batch(ROWS[:2], CPU), 0, 0):
        remains = dropouts(model)[0](x)
    remains.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, remains.detach(), rtol=0, atol=0)


def test_nothing_is_dropped_while_evaluating() -> None:
    model, x = adapted(0.5).eval(), torch.ones(1, 83, 8)
    with document_masks(micro_batch(ROWS, CPU), 0, 0):
        assert torch.equal(dropouts(model)[0](x), x)


def test_dropout_outside_of_a_step_is_an_error() -> None:
    with document_masks(micro_batch(ROWS, CPU), 0, 0):
        pass
    with pytest.raises(AssertionError, match="no step"):
        dropouts(adapted(0.5))[0](torch.ones(1, 83, 8))


def test_without_dropout_no_layer_is_replaced() -> None:
    assert not dropouts(adapted(0.0))


def test_a_layer_whose_inputs_are_not_tokens_is_named_with_the_remedy() -> None:
    dropout, said = (
        dropouts(adapted(0.5))[1],
        r"lora\.dropout: the inputs of layer .*q_proj .* Set spec\.method\.lora\.dropout to 0",
    )
    batch = micro_batch([example(20, 5)], CPU)
    with document_masks(batch, 0, 0), pytest.raises(TrainerFailure, match=said) as caught:
        dropout(torch.ones(1, 4, 20, 8))
    assert caught.value.reason is FailureReason.SPEC_INVALID
