"""The published serving settings produce exactly the tokens of the training prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig

from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.results.serving import QUESTION, serving_of, shared_beginning, vllm_obstacles, vllm_rank
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.findings import Findings
from finetune_trainer.tokens.render import prompt_format
from finetune_trainer.tokens.tokenization import tokenize
from tests.unit.finetune_trainer.conftest import TEMPLATE, MakeBundle, save_tokenizer
from tests.unit.finetune_trainer.small_runs import results
from tests.unit.finetune_trainer.tokens.test_render import DATED, THINKING, THOUGHTFUL

SYSTEM = "Answer in one word."


def asked(content: str, system: str = SYSTEM) -> list[Message]:
    return [Message("system", system), Message("user", content)]


def prepared(make_bundle: MakeBundle, tokenizer: Any, prompts: list[list[Message]], answer: str = "yes") -> Prepared:
    """Prepares these prompts as preflight does, all with the same answer."""
    format = prompt_format(tokenizer)
    rows = [Row((*prompt, Message("assistant", answer)), f"t.jsonl:{i}") for i, prompt in enumerate(prompts, 1)]
    train: list[Example] = [example for _, example in tokenize(rows, format, tokenizer, Findings())]
    other = results(make_bundle()).prepared
    return Prepared(
        train, other.test, other.resolved, other.preflight, other.answers, format.stop_token_ids, format.source
    )


def load(folder: Path, template: str | None) -> Any:
    from transformers import AutoTokenizer

    save_tokenizer(folder, template)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("answer", ["yes", "<think>\nhm\n</think>\n\nyes"])
@pytest.mark.parametrize("template", [TEMPLATE, THINKING, THOUGHTFUL, DATED, None])
def test_the_published_template_gives_the_tokens_of_training(
    template: str | None, answer: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    tokenizer = load(tmp_path, template)
    ready = prepared(make_bundle, tokenizer, [asked("is it late?")], answer)
    if not ready.train:
        assert (template, answer) == (THOUGHTFUL, "yes"), "a row that is refused"
        return
    serving = serving_of(ready, tokenizer)
    messages = [{"role": message.role, "content": message.content} for message in asked("is it late?")]
    tokens = tokenizer.apply_chat_template(
        messages, chat_template=serving.chat_template, add_generation_prompt=True, **serving.template_arguments
    )["input_ids"]
    row = ready.train[0]
    assert tokens == row.input_ids[: row.prompt_length].tolist()


def test_it_has_the_common_beginning_and_end_of_all_prompts(make_bundle: MakeBundle, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE)
    ready = prepared(make_bundle, tokenizer, [asked("is it late?"), asked("how big is it?"), asked("who?")])
    found = serving_of(ready, tokenizer).as_json()
    assert found["trainingPrompts"] == {
        "beginWith": f"<|start|>system\n{SYSTEM}<|end|>\n<|start|>user\n",
        "endWith": "?<|end|>\n<|start|>assistant\n",
    }
    assert found["example"]["prompt"] == f"<|start|>user\n{QUESTION}<|end|>\n<|start|>assistant\n"
    assert found["stopTokens"] == [{"id": 3, "text": "<|end|>"}]
    assert found["generation"] == {"do_sample": False, "max_new_tokens": 16}


def test_rows_without_prompts_have_no_example(make_bundle: MakeBundle, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE)
    ready = prepared(make_bundle, tokenizer, [asked("is it late?")])
    found = serving_of(
        replace(ready, train=[replace(row, prompt_length=0) for row in ready.train]), tokenizer
    ).as_json()
    assert (found["example"], found["trainingPrompts"]) == (None, {"beginWith": "", "endWith": ""})


def test_an_incomplete_character_is_not_shown(make_bundle: MakeBundle, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE)
    ready = prepared(make_bundle, tokenizer, [asked("", "ä"), asked("", "ö")])
    assert serving_of(ready, tokenizer).beginning == "<|start|>system\n"


def test_the_common_beginning_ends_at_the_first_difference() -> None:
    prompts = [np.array(tokens, dtype=np.int32) for tokens in ([1, 2, 3, 4], [1, 2, 4], [1, 2, 3])]
    assert shared_beginning(prompts).tolist() == [1, 2]
    assert shared_beginning(prompts[:1]).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("rank", "least"), [(1, 8), (8, 8), (16, 16), (17, 32), (65, 128), (300, 320), (512, 512)])
def test_the_vllm_rank_is_one_that_vllm_accepts(rank: int, least: int) -> None:
    assert vllm_rank(LoraConfig(r=rank)) == least


def test_features_that_vllm_rejects_are_obstacles() -> None:
    assert vllm_obstacles(LoraConfig(use_rslora=True)) == []
    for refused in ({"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"r": 1024}):
        assert len(vllm_obstacles(LoraConfig(**refused))) == 1


def test_features_that_vllm_ignores_are_obstacles() -> None:
    assert vllm_obstacles(LoraConfig(init_lora_weights="gaussian")) == []
    for refused in (
        {"rank_pattern": {"v_proj": 64}},
        {"target_parameters": ["mlp.experts.down_proj"]},
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
    ):
        assert len(vllm_obstacles(LoraConfig(**refused))) == 1
