"""Generated answers do not depend on batches, padding and a shared beginning."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import inf
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.spec.method import MethodType
from finetune_trainer.evaluation import generation as module
from finetune_trainer.evaluation.generation import (
    context,
    generate,
    read_answer,
    read_beginning,
    shared_beginning,
    write_answers,
)
from finetune_trainer.model.parameters.loading import greedy_generation, load_model
from tests.unit.finetune_trainer.model.layers.test_attention import gpt2
from tests.unit.finetune_trainer.model_families import (
    COMPOSITE,
    Family,
    bloom,
    falcon,
    falcon_h1,
    mpt,
    qwen3_5,
    qwen3_5_with_images,
    recurrent_gemma,
    rwkv,
    save_family,
)
from tests.unit.finetune_trainer.small_runs import SIZES, VOCABULARY, prepared_model, tiny_llama

END = 3


def prompts(lengths: Sequence[int], shared: int = 0) -> list[NDArray[np.int32]]:
    """Prompts of random tokens. The first `shared` tokens are the same in all prompts."""
    source = np.random.default_rng(0)
    beginning = source.integers(4, VOCABULARY, shared)
    return [np.array([*beginning, *source.integers(4, VOCABULARY, length)], dtype=np.int32) for length in lengths]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def require_same_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[NDArray[np.int32]]
) -> None:
    """Answers to prompts in one batch, and answers to the same prompts one by one."""
    generation = greedy_generation(model, (END,), max_new_tokens=8)
    with torch.no_grad():
        together = write_answers("it", model, tokenizer, asked, [""] * len(asked), 10_000, generation)
        alone = [write_answers("it", model, tokenizer, [prompt], [""], 1, generation)[0] for prompt in asked]
    assert together == alone
    assert len({answer.text for answer in alone}) > 1, "a test that can fail"


def test_answers_do_not_depend_on_the_other_rows_of_the_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    require_same_answers(tiny_llama(), tokenizer, prompts([16, 5, 27, 8, 22]))


@pytest.mark.parametrize("family", [rwkv, recurrent_gemma, qwen3_5, qwen3_5_with_images, falcon_h1, falcon, bloom, mpt])
def test_answers_of_a_recurrent_model_do_not_depend_on_the_batch(
    family: Family, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = load_model(save_family(family, tmp_path), MethodType.LORA, torch.device("cpu")).float().eval()
    require_same_answers(model, tokenizer, prompts([16, 5, 27, 8, 22], shared=70))


@pytest.mark.parametrize("model", [tiny_llama, gpt2])
def test_a_shared_beginning_is_read_once_and_changes_no_answer(
    model: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    asked = prompts([16, 5, 9, 3], shared=70)
    generation = greedy_generation(made, (END,), max_new_tokens=12)
    read: list[torch.Size] = []

    def beginning(model: PreTrainedModel, input_ids: torch.Tensor, rows: int) -> DynamicCache:
        read.append(input_ids.shape)
        return read_beginning(model, input_ids, rows)

    monkeypatch.setattr(module, "read_beginning", beginning)
    with torch.no_grad():
        together = generate(made, asked, generation)
        alone = [generate(made, [prompt], generation)[0] for prompt in asked]
    assert read == [(1, 70)]
    assert [written[: len(one)] for written, one in zip(together, alone, strict=True)] == alone
    assert len(set(map(tuple, alone))) > 1, "a test that can fail"


@pytest.mark.parametrize("family", COMPOSITE, ids=lambda family: family.__name__)
def test_answers_of_a_model_with_images_do_not_depend_on_earlier_batches(family: Family, tmp_path: Path) -> None:
    model = load_model(save_family(family, tmp_path), MethodType.LORA, torch.device("cpu")).double().eval()
    asked = prompts([16, 5, 9], shared=70)
    generation = greedy_generation(model, (END,), max_new_tokens=8)
    with torch.no_grad():
        alone = [generate(model, [prompt], generation)[0] for prompt in asked]
        generate(model, prompts([6, 11]), generation)
        together = generate(model, asked, generation)
    assert [written[: len(one)] for written, one in zip(together, alone, strict=True)] == alone
    assert len(set(map(tuple, alone))) > 1, "a test that can fail"


def test_a_model_with_a_sliding_window_shares_no_beginning() -> None:
    settings = MistralConfig(**SIZES, sliding_window=16)
    torch.manual_seed(0)
    model = prepared_model(MistralForCausalLM(settings), torch.float64)
    asked = prompts([16, 5, 9, 3], shared=70)
    generation = greedy_generation(model, (END,), max_new_tokens=12)
    with torch.no_grad():
        together = generate(model, asked, generation)
        alone = [generate(model, [prompt], generation)[0] for prompt in asked]
    assert [written[: len(one)] for written, one in zip(together, alone, strict=True)] == alone


@pytest.mark.parametrize(
    ("lengths", "shared", "found"),
    [([5, 9], 70, 70), ([5, 9], 63, 0), ([5], 70, 0), ([0, 4], 70, 69), ([0, 0], 70, 69)],
)
def test_a_shared_beginning_leaves_at_least_one_token_of_each_prompt(
    lengths: list[int], shared: int, found: int
) -> None:
    assert shared_beginning(prompts(lengths, shared)) == found


@pytest.mark.parametrize(("model", "longest"), [(gpt2(), 128), (mpt(), 512)])
def test_an_answer_never_exceeds_the_models_context(
    model: PreTrainedModel, longest: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Learned positions are a table of fixed length, and MPT has its own name for this length."""
    assert context(model) == longest
    generation = greedy_generation(model, (END,), max_new_tokens=longest + 72)
    with torch.no_grad():
        write_answers("it", model, tokenizer, prompts([16, 5]), ["", ""], 10_000, generation)


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


def test_the_end_of_a_thought_is_kept_if_it_is_a_special_token(tokenizer: PreTrainedTokenizerBase) -> None:
    known = deepcopy(tokenizer)
    known.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokens = known("<think>\nperhaps\n</think>\n\nyes<|end|>", add_special_tokens=False).input_ids
    answer = read_answer(known, tokens, [END], "yes")
    assert answer.matches
    assert answer.text.endswith("perhaps\n</think>\n\nyes")


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=30),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(1, 200),
    st.sampled_from([0, 300, inf]),
)
def test_rows_are_answered_in_batches_with_the_longest_rows_first(
    tokenizer: PreTrainedTokenizerBase, lengths: list[int], tokens: int, holds: int, new: int, padded: float
) -> None:
    answered: list[list[int]] = []

    def write(model: Any, prompts: Sequence[NDArray[np.int32]], generation: GenerationConfig) -> list[list[int]]:
        """Stands in for a GPU whose memory holds `holds` tokens. For more it raises the error that PyTorch raises."""
        rows = [len(prompt) for prompt in prompts]
        if len(rows) > 1 and len(rows) * (max(rows) + new) > holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        answered.append(rows)
        return [[END]] * len(rows)

    made = GenerationConfig(max_new_tokens=new, eos_token_id=[END])
    together = mock.Mock(padded=padded)
    with mock.patch.object(module, "generate", write), mock.patch.object(module, "sharing", return_value=together):
        found = write_answers("it", mock.Mock(), tokenizer, prompts(lengths), [""] * len(lengths), tokens, made)
    assert len(found) == len(lengths)
    assert [length for rows in answered for length in rows] == sorted(lengths, reverse=True)
    for rows in answered:
        assert len(rows) == 1 or max(rows) + new <= padded, "padding would change it"
        assert len(rows) * (max(rows) + new) <= min(tokens, holds) or len(rows) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes differ")])
def test_running_out_of_memory_with_one_prompt_and_other_errors_are_not_retried(
    tokenizer: PreTrainedTokenizerBase, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "generate", mock.Mock(side_effect=error))
    model = tiny_llama()
    generation = greedy_generation(model, (END,), max_new_tokens=8)
    asked = prompts([9, 5] if "shapes" in str(error) else [9])
    with pytest.raises(RuntimeError, match=str(error)):
        write_answers("it", model, tokenizer, asked, [""] * len(asked), 10_000, generation)
