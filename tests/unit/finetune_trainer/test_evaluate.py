"""A model on the held-out rows."""

from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_trainer.batches import micro_batch
from finetune_trainer.evaluate import draw_rows, evaluate, generation_batches, read_answer, write_answers
from finetune_trainer.failure import TrainerFailure
from finetune_trainer.loss import token_losses
from finetune_trainer.model import greedy_generation
from tests.unit.finetune_trainer.test_attention import gpt2
from tests.unit.finetune_trainer.tiny import examples, fresh_accelerator, measured, tiny_llama

ROWS = examples([24, 7, 40, 12, 33])
END = 3


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def test_the_loss_is_that_of_each_row_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    generation = greedy_generation(model, (END,), max_new_tokens=4)
    found = evaluate("it", model, tokenizer, ROWS, 50, generation, fresh_accelerator())
    with torch.no_grad():
        alone = [token_losses(model, micro_batch([row], model.device)) for row in ROWS]
    assert found.losses == pytest.approx([losses.sum().item() for losses in alone], abs=1e-8)
    assert found.labels.tolist() == [len(losses) for losses in alone]
    assert found.loss == pytest.approx(torch.cat(alone).mean().item(), abs=1e-8)


def test_answers_do_not_depend_on_who_else_is_in_the_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    generation = greedy_generation(model, (END,), max_new_tokens=8)
    with torch.no_grad():
        together = write_answers("it", model, tokenizer, ROWS, 10_000, generation)
        alone = [write_answers("it", model, tokenizer, [row], 1, generation)[0] for row in ROWS]
    assert together == alone
    assert len({answer.text for answer in alone}) > 1, "a test that can fail"


def test_an_answer_never_runs_out_of_the_models_positions(tokenizer: PreTrainedTokenizerBase) -> None:
    model = gpt2()  # its positions are a table of 128
    generation = greedy_generation(model, (END,), max_new_tokens=200)
    with torch.no_grad():
        write_answers("it", model, tokenizer, ROWS, 10_000, generation)


@pytest.mark.parametrize(
    ("written", "text", "truncated", "matches"),
    [
        ("yes", "yes", True, True),
        ("yes<|end|>", "yes", False, True),
        (" yes \n<|end|> and more", "yes", False, True),
        ("no<|end|>", "no", False, False),
        ("<|end|>", "", False, False),
    ],
)
def test_an_answer_ends_at_the_first_end_token(
    tokenizer: PreTrainedTokenizerBase, written: str, text: str, truncated: bool, matches: bool
) -> None:
    tokens = tokenizer(written, add_special_tokens=False).input_ids
    answer = read_answer(tokenizer, tokens, [END], " yes\n")
    assert (answer.text, answer.truncated, answer.matches) == (text, truncated, matches)


def test_metrics_count_rows() -> None:
    metrics = measured([1.0, 2.0, 3.0, 2.0], [True, False, False, False]).metrics
    assert metrics.loss == pytest.approx(2.0)
    assert metrics.perplexity == pytest.approx(exp(2.0))
    assert metrics.exact_match == 0.25
    assert metrics.truncated == 0


def test_a_loss_that_is_not_a_number_is_no_result(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainerFailure, match="loss of the tuned model") as caught:
        evaluate(
            "the tuned model", model, tokenizer, ROWS, 50, greedy_generation(model, (END,), 4), fresh_accelerator()
        )
    assert caught.value.reason is FailureReason.LOSS_DIVERGED


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 4000), st.integers(1, 200))
def test_rows_are_answered_in_batches_that_fit_longest_first(lengths: list[int], tokens: int, new: int) -> None:
    batches = list(generation_batches(lengths, tokens, new))
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) * (max(lengths[row] for row in rows) + new) <= tokens or len(rows) == 1
    flat = [lengths[row] for rows in batches for row in rows]
    assert flat == sorted(lengths, reverse=True)


def test_rows_are_drawn_by_seed_and_stay_in_order() -> None:
    rows = examples([5] * 50)
    drawn = [row.source for row in draw_rows(rows, 20, seed=1)]
    assert drawn == [row.source for row in draw_rows(rows, 20, seed=1)]
    assert drawn != [row.source for row in draw_rows(rows, 20, seed=2)]
    assert drawn == [row.source for row in rows if row.source in drawn]
    assert len(drawn) == 20
    assert len(draw_rows(rows, 200, seed=1)) == 50
    assert np.unique(drawn).size == 20
