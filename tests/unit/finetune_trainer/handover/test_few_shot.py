"""Few-shot prompts: the choice, the order and the number of the examples."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.handover.few_shot import (
    DRAWS,
    EXAMPLES,
    choose_examples,
    few_shot_draws,
    why_none,
    with_examples,
)
from finetune_trainer.handover.prepared import Example
from finetune_trainer.pod.liveness.heartbeat import beats
from finetune_trainer.rows.row_format import Message
from finetune_trainer.tokens.render import prompt_format
from tests.unit.finetune_trainer.small_runs import example, turns


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def rows(count: int, first: int = 0) -> list[Example]:
    return [example(20, 8, i, texts=(f"What is {i}?", f"It is {i}.")) for i in range(first, first + count)]


def test_three_draws_of_five_examples_come_before_every_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    train, held_out = rows(40), rows(6, first=100)
    draws = few_shot_draws(train, held_out, prompt_format(tokenizer), tokenizer, 4000, seed=0)
    assert [draw.examples for draw in draws] == [EXAMPLES] * DRAWS
    texts = [tokenizer.decode(draw.prompts[2]) for draw in draws]
    assert len(set(texts)) == DRAWS
    for text in texts:
        assert text.endswith("<|start|>user\nWhat is 102?<|end|>\n<|start|>assistant\n")
        assert text.count("<|start|>assistant\nIt is ") == EXAMPLES
    before = beats()
    again = few_shot_draws(train, held_out, prompt_format(tokenizer), tokenizer, 4000, seed=0)
    assert all(np.array_equal(*pair) for pair in zip(draws[0].prompts, again[0].prompts, strict=True))
    assert beats() - before >= DRAWS * len(held_out), "thousands of long prompts take minutes"


def test_no_example_is_of_a_held_out_rows_cluster_and_no_two_are_of_one() -> None:
    train = [replace(row, cluster=i % 8) for i, row in enumerate(rows(40))]
    for number in range(20):
        chosen = choose_examples(train, {0, 1, 2}, 4000, f"{number}")
        clusters = [row.cluster for row in chosen]
        assert len(set(clusters)) == len(clusters) == EXAMPLES
        assert not {0, 1, 2} & set(clusters)
    assert choose_examples(train, set(range(8)), 4000, "0") == []


@pytest.mark.parametrize(("room", "fewest", "most"), [(4000, 5, 5), (100, 1, 4), (60, 1, 2)])
def test_fewer_examples_where_there_is_no_room_for_five(
    tokenizer: PreTrainedTokenizerBase, room: int, fewest: int, most: int
) -> None:
    draws = few_shot_draws(rows(40), rows(6, first=100), prompt_format(tokenizer), tokenizer, room, seed=0)
    assert len(draws) == DRAWS
    assert all(fewest <= draw.examples <= most for draw in draws)
    assert all(len(prompt) <= room for draw in draws for prompt in draw.prompts)


def test_the_log_says_why_there_is_no_example() -> None:
    train, held_out = rows(40), rows(6, first=100)
    assert "no example fits into 30 tokens" in why_none(train, held_out, 30, seed=0)
    same = [replace(row, cluster=held_out[0].cluster) for row in train]
    assert "asks the same, or nearly the same, as a held-out row" in why_none(same, held_out, 4000, seed=0)
    documents = [replace(row, messages=(Message("document", "A text."),)) for row in train]
    assert "texts without a prompt" in why_none(documents, held_out, 4000, seed=0)


def test_no_draw_where_no_example_fits(tokenizer: PreTrainedTokenizerBase) -> None:
    assert few_shot_draws(rows(40), rows(6), prompt_format(tokenizer), tokenizer, 30, seed=0) == []


def test_a_row_that_is_too_long_is_passed_over() -> None:
    train = [replace(row, input_ids=np.zeros(900, np.int32)) for row in rows(35)] + rows(5, first=35)
    assert sorted(row.cluster for row in choose_examples(train, set(), 100, "0")) == [35, 36, 37, 38, 39]


def with_system(row: Example, *systems: str) -> Example:
    return replace(row, messages=(*(Message("system", text) for text in systems), *row.messages))


def test_a_system_message_that_all_rows_share_is_first_and_only_there() -> None:
    shown, asked = (with_system(row, "Answer briefly.") for row in rows(2))
    talk = replace(asked, messages=(asked.messages[0], *turns("Hello.", "Hello!"), *asked.messages[1:]))
    assert with_examples([shown], talk) == (
        Message("system", "Answer briefly."),
        *turns("What is 0?", "It is 0."),
        *turns("Hello.", "Hello!"),
        Message("user", "What is 1?"),
    )


@pytest.mark.parametrize(
    ("shown", "asked", "first", "last"),
    [
        (["Document A."], ["Document B."], "Document A.\n\nWhat is 0?", "Document B.\n\nWhat is 1?"),
        (["Document A."], [], "Document A.\n\nWhat is 0?", "What is 1?"),
        ([], ["Document B."], "What is 0?", "Document B.\n\nWhat is 1?"),
        ([], [], "What is 0?", "What is 1?"),
    ],
    ids=["each its own", "only the example", "only the row", "none"],
)
def test_a_system_message_of_its_own_is_in_front_of_the_user_turn(
    shown: list[str], asked: list[str], first: str, last: str
) -> None:
    example, row = rows(2)
    assert with_examples([with_system(example, *shown)], with_system(row, *asked)) == (
        *turns(first, "It is 0."),
        Message("user", last),
    )


def test_in_a_conversation_the_system_message_is_in_front_of_the_first_user_turn_alone() -> None:
    example, row = rows(2)
    talk = replace(row, messages=(Message("system", "Table B."), *turns("Hello.", "Hello!"), *row.messages))
    assert with_examples([with_system(example, "Table A.")], talk) == (
        *turns("Table A.\n\nWhat is 0?", "It is 0."),
        *turns("Table B.\n\nHello.", "Hello!"),
        Message("user", "What is 1?"),
    )


@pytest.mark.parametrize("room", [4000, 400, 200])
def test_every_prompt_has_the_documents_of_its_examples_and_fits(tokenizer: PreTrainedTokenizerBase, room: int) -> None:
    format = prompt_format(tokenizer)

    def measured(row: Example, document: str) -> Example:
        row = with_system(row, document)
        tokens = tokenizer(format.prompt(row.messages, False), add_special_tokens=False).input_ids
        return replace(row, input_ids=np.array(tokens), prompt_length=len(tokens))

    train = [measured(row, f"Paper {number} says so.") for number, row in enumerate(rows(40))]
    held_out = [measured(row, f"Sheet {number} says no.") for number, row in enumerate(rows(6, first=100))]
    draws = few_shot_draws(train, held_out, format, tokenizer, room, seed=0)
    assert len(draws) == DRAWS
    for draw in draws:
        for number, prompt in enumerate(draw.prompts):
            text = tokenizer.decode(prompt)
            assert len(prompt) <= room
            assert text.count("Paper ") == draw.examples
            assert text.endswith(
                f"user\nSheet {number} says no.\n\nWhat is {100 + number}?<|end|>\n<|start|>assistant\n"
            )
