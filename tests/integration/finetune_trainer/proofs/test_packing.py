"""How rows lie in memory changes nothing: not the gradient of a step, not what a document sees."""

from collections import Counter
from collections.abc import Sequence
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune_api.spec.method import Method
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import micro_batch, micro_batches
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import attach_lora, trainable_parameters
from finetune_trainer.training.loop import accumulate_gradients
from tests.unit.finetune_trainer.small_runs import example, examples, fresh_accelerator, tiny_llama

CPU = torch.device("cpu")
EVEN = examples([16] * 16)
UNEVEN = examples([24, 7, 40, 12, 33, 18, 9, 51, 28, 15, 62, 5, 37, 21, 44, 11])
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_16_rows_at_once_4_by_4_and_1_by_1_give_one_gradient(dtype: torch.dtype, tolerance: float) -> None:
    assert [len(micro_batches(EVEN, tokens, inf, CPU)) for tokens in (256, 64, 16)] == [1, 4, 16]
    at_once = gradient(EVEN, 256, dtype)
    for tokens in (64, 16):
        assert distance(gradient(EVEN, tokens, dtype), at_once) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_packed_rows_give_the_gradient_of_rows_alone(dtype: torch.dtype, tolerance: float) -> None:
    assert distance(gradient(UNEVEN, 10_000, dtype), gradient(UNEVEN, 1, dtype)) < tolerance


def test_the_distance_tells_a_gradient_from_that_of_one_row_less() -> None:
    assert distance(gradient(UNEVEN[1:], 10_000, torch.float64), gradient(UNEVEN, 10_000, torch.float64)) > 0.1


@given(lengths, st.integers(1, 100))
def test_no_token_is_lost_and_none_is_there_twice(lengths: list[int], limit: int) -> None:
    rows = [example(length, min(length, 3), seed) for seed, length in enumerate(lengths)]
    documents, labels = Counter[tuple[int, ...]](), Counter[int]()
    for batch in micro_batches(rows, limit, inf, CPU):
        documents.update(tuple(part.tolist()) for part in torch.split(batch.input_ids[0], list(batch.document_lengths)))
        labels.update(batch.labels.tolist())
    assert documents == Counter(tuple(row.input_ids.tolist()) for row in rows)
    # A row's first token has nothing before it to be told from.
    assert labels == Counter(token for row in rows for token in row.input_ids[1:][row.supervised[1:]].tolist())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=2, max_size=6), st.data())
def test_no_document_sees_another(lengths: list[int], data: st.DataObject) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    rows = [example(length, length - 1, seed) for seed, length in enumerate(lengths)]
    others = [row if i != changed else example(lengths[i], lengths[i] - 1, 99) for i, row in enumerate(rows)]
    model = tiny_llama()
    with torch.no_grad():
        before, after = micro_batch(rows, CPU), micro_batch(others, CPU)
        difference = (token_losses(model, before) - token_losses(model, after)).abs()
    untouched = before.label_documents != changed
    assert difference[untouched].max() < 1e-12
    assert difference[~untouched].max() > 1e-3


def gradient(rows: Sequence[Example], micro_batch_tokens: int, dtype: torch.dtype) -> Tensor:
    """The step's gradient over all adapter weights. bf16: as it is trained, fp32 adapters over a bf16 model."""
    model = attach_lora(tiny_llama(dtype), Method(), seed=0)
    mixed = dtype is torch.bfloat16
    model = model if mixed else model.to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at 0, where the gradient of A is 0 whatever happens
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    accumulate_gradients(model, rows, micro_batch_tokens, fresh_accelerator("bf16" if mixed else "no"))
    return torch.cat([parameter.grad.flatten() for parameter in trainable_parameters(model)])  # type: ignore[union-attr]


def distance(one: Tensor, other: Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    return ((one - other).norm() / other.norm()).item()
