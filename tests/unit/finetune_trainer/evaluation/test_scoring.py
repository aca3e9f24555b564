"""Measuring a model on held-out rows."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.handover.few_shot import Draw
from finetune_trainer.handover.mixing import draw_rows
from finetune_trainer.model.batches import micro_batch
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.loading import greedy_generation
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.statistics.measurements import perplexity
from tests.unit.finetune_trainer.small_runs import examples, fresh_accelerator, tiny_llama

ROWS = examples([24, 7, 40, 12, 33])
END = 3


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def evaluator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    return Evaluator(tokenizer, 50, greedy_generation(model, (END,), max_new_tokens=4), fresh_accelerator())


def test_the_loss_of_a_packed_row_equals_its_loss_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    found = evaluator(model, tokenizer).measure("it", model, ROWS)
    with torch.no_grad():
        alone = [token_losses(model, micro_batch([row], model.device)) for row in ROWS]
    assert found.losses == pytest.approx([losses.sum().item() for losses in alone], abs=1e-8)
    assert found.labels.tolist() == [len(losses) for losses in alone]
    assert found.loss == pytest.approx(torch.cat(alone).mean().item(), abs=1e-8)
    assert len(found.answers) == len(ROWS)


def test_a_regression_set_has_its_own_limit_of_new_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    short = evaluator(model, tokenizer)
    longer = short.up_to(12)
    texts = [[len(answer.text) for answer in each.measure("it", model, ROWS).answers] for each in (short, longer)]
    assert sum(texts[1]) > 2 * sum(texts[0])
    assert short.generation.max_new_tokens == 4, "untouched"


def test_no_answers_are_generated_if_no_metric_needs_them(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    found = evaluator(model, tokenizer).measure("it", model, ROWS, answers=False)
    assert found.answers == []
    assert found.loss > 0


def test_a_row_without_a_prompt_gets_an_empty_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    document = replace(ROWS[1], messages=ROWS[1].messages[-1:])
    found = evaluator(model, tokenizer).measure("it", model, [ROWS[0], document, ROWS[2]])
    alone = evaluator(model, tokenizer).measure("it", model, [ROWS[0], ROWS[2]])
    assert [answer.text for answer in found.answers] == [alone.answers[0].text, "", alone.answers[1].text]
    assert len(found.losses) == 3


def test_the_base_model_answers_every_row_in_every_draw(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    prompts = [row.input_ids[: row.prompt_length] for row in ROWS]
    draws = [Draw(5, prompts), Draw(2, prompts[::-1])]
    said: list[str] = []
    found = evaluator(model, tokenizer).prompted(model, ROWS, draws, said.append)
    prompted = "the base model prompted with"
    assert said == [f"{prompted} 5 examples, draw 1 of 2", f"{prompted} 2 examples, draw 2 of 2"]
    assert found.shots == (5, 2)
    assert [answer.text for answer in found.draws[1]] == [answer.text for answer in found.draws[0]][::-1]


def test_a_loss_that_is_not_finite_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainerFailure, match="loss of the tuned model") as caught:
        evaluator(model, tokenizer).measure("the tuned model", model, ROWS)
    assert caught.value.reason is FailureReason.LOSS_DIVERGED


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert perplexity(2.0) == pytest.approx(exp(2.0))
    assert perplexity(1e6) == float("inf")


def test_rows_are_drawn_by_seed_and_stay_in_order() -> None:
    rows = examples([5] * 50)
    drawn = [row.place for row in draw_rows(rows, 20, seed=1)]
    assert drawn == [row.place for row in draw_rows(rows, 20, seed=1)]
    assert drawn != [row.place for row in draw_rows(rows, 20, seed=2)]
    assert drawn == [row.place for row in rows if row.place in drawn]
    assert len(drawn) == 20
    assert len(draw_rows(rows, 200, seed=1)) == 50
    assert np.unique(drawn).size == 20
