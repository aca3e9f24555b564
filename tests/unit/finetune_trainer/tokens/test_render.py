"""Rows in the form that a model reads, and the tokens that are trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.reasons import FailureReason
from finetune_api.spec.training import LossOn
from finetune_trainer.handover.prepared import Example
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.row_format import Message, Row
from finetune_trainer.sources.findings import Findings, InvalidRow
from finetune_trainer.tokens import render
from finetune_trainer.tokens.render import PromptFormat, prompt_format
from finetune_trainer.tokens.tokenization import tokenize
from tests.unit.finetune_trainer.conftest import TEMPLATE, save_tokenizer

LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}{% else %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% else %}{{ bos_token }}{% endif %}"
)
"""Ends a whole conversation by one more token (here the tokenizer's <s> stands for it)."""
FORGETFUL = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}(short){% else %}{{ m.content }}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% if enable_thinking is not defined or enable_thinking %}"
    "<think>{% endif %}{% endif %}"
)
UNENDED = (
    "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + TEMPLATE


def load(folder: Path, template: str | None, bos: bool = False) -> Any:
    from transformers import AutoTokenizer

    save_tokenizer(folder, template, bos)
    return AutoTokenizer.from_pretrained(folder)


def row(*contents: str, system: str = "") -> Row:
    roles = ["user", "assistant"] * len(contents)
    turns = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Row((Message("system", system), *turns) if system else turns, "t.jsonl:1")


def tokenized(tokenizer: Any, *rows: Row, format: PromptFormat | None = None) -> list[Example]:
    findings = Findings()
    examples = [example for _, example in tokenize(rows, format or prompt_format(tokenizer), tokenizer, findings)]
    findings.raise_if_invalid()
    return examples


def learned(tokenizer: Any, example: Example) -> str:
    text: str = tokenizer.decode(example.input_ids[example.supervised])
    return text


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tmp_path_factory.mktemp("chat"), TEMPLATE)


def test_text_and_tokens_are_those_of_transformers_up_to_the_end_of_the_answer(tokenizer: Any) -> None:
    example = tokenized(tokenizer, row("What?", "That.", system="Be brief."))[0]
    chat = [{"role": r, "content": c} for r, c in (("system", "Be brief."), ("user", "What?"), ("assistant", "That."))]
    whole = tokenizer.apply_chat_template(chat)["input_ids"]
    assert example.input_ids.tolist() == whole[: len(example.input_ids)]
    assert tokenizer.decode(whole[len(example.input_ids) :]) == "\n"
    prompt = tokenizer.apply_chat_template(chat[:2], add_generation_prompt=True)["input_ids"]
    assert example.input_ids[: example.prompt_length].tolist() == prompt


def test_the_answer_and_its_end_of_turn_are_learned_and_nothing_else(tokenizer: Any) -> None:
    example = tokenized(tokenizer, row("What?", "That."))[0]
    assert learned(tokenizer, example) == "That.<|end|>"
    assert example.supervised.tolist() == [False] * example.prompt_length + [True] * int(example.supervised.sum())
    assert (example.prompt, example.answer, example.place) == ("What?", "That.", "t.jsonl:1")


def test_every_assistant_turn_is_learned(tokenizer: Any) -> None:
    example = tokenized(tokenizer, row("a?", "A.", "b?", "B.", "c?", "C.", system="s"))[0]
    assert learned(tokenizer, example) == "A.<|end|>B.<|end|>C.<|end|>"
    assert tokenizer.decode(example.input_ids[: example.prompt_length]).endswith("c?<|end|>\n<|start|>assistant\n")
    assert example.prompt == "user: a?\nassistant: A.\nuser: b?\nassistant: B.\nuser: c?"


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda t: t.strip() and "<" not in t)


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
@settings(max_examples=200)
def test_learned_tokens_decode_to_the_answers_with_their_end_of_turn(
    tokenizer: Any, pairs: list[tuple[str, str]]
) -> None:
    example = tokenized(tokenizer, row(*(text for pair in pairs for text in pair)))[0]
    last = learned(tokenizer, example).split("<|end|>")[-2]
    assert last == pairs[-1][1]
    assert learned(tokenizer, example).count("<|end|>") == len(pairs)
    # Earlier answers: a token may reach over their start, whose other half is the newline before them.
    for found, (_, answer) in zip(learned(tokenizer, example).split("<|end|>"), pairs, strict=False):
        assert found.removeprefix("\n").strip() == answer.removeprefix("\n").strip()
    assert not example.supervised[0]
    assert tokenizer.decode(example.input_ids) == "".join(
        f"<|start|>user\n{question}<|end|>\n<|start|>assistant\n{answer}<|end|>\n" for question, answer in pairs
    ).removesuffix("\n")


def test_an_answer_that_would_merge_with_the_prompts_end_is_tokenized_apart(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE.replace("\n{% endif %}", " {% endif %}").replace("}}\n{{", "}} {{"))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "q"}], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([{"role": "user", "content": "q"}, {"role": "assistant", "content": "the"}])
    assert whole["input_ids"][: len(prompt)] != prompt, "the case this test is about"
    example = tokenized(tokenizer, row("q", "the"))[0]
    assert example.input_ids[: example.prompt_length].tolist() == prompt
    assert learned(tokenizer, example) == "the<|end|>"


def test_a_template_that_writes_bos_gets_no_second_one(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, LLAMA_2, bos=True)
    example = tokenized(tokenizer, row("q", "a", "r", "b"))[0]
    assert tokenizer.decode(example.input_ids) == "<s>[INST] q [/INST] a <|end|>[INST] r [/INST] b <|end|>"
    assert learned(tokenizer, example).replace(" ", "") == "a<|end|>b<|end|>"


def test_what_a_template_adds_after_the_last_turn_is_left_out(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, PHI_3)
    example = tokenized(tokenizer, row("q", "a", "r", "b"))[0]
    assert learned(tokenizer, example) == "a<|end|>b<|end|>"
    assert "<s>" not in tokenizer.decode(example.input_ids)


def test_under_a_template_that_rewrites_earlier_turns_each_answer_is_learned_as_it_is_asked_for(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, FORGETFUL)
    conversation, findings = row("q", "a", "r", "b"), Findings()
    examples = [found for _, found in tokenize([conversation], prompt_format(tokenizer), tokenizer, findings)]
    assert [learned(tokenizer, example) for example in examples] == ["a<|end|>", "b<|end|>"]
    assert [example.messages for example in examples] == [conversation.messages[:2], conversation.messages]
    assert "(short)" in tokenizer.decode(examples[1].input_ids), "what a server writes of the earlier answer"
    assert findings.taken_apart == 1
    assert len(tokenized(tokenizer, row("q", "a"))) == 1


def test_under_such_a_template_only_answers_that_are_learned_become_rows(tmp_path: Path) -> None:
    tokenizer, turns = load(tmp_path, FORGETFUL), list(row("q", "a", "r", "b", "s", "c").messages)
    turns[1] = turns[1]._replace(learned=False)
    second, third = tokenized(tokenizer, Row(tuple(turns), "t.jsonl:1"))
    assert (learned(tokenizer, second), learned(tokenizer, third)) == ("b<|end|>", "c<|end|>")


def test_a_model_that_can_think_first_is_asked_for_the_answer_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, THINKING)
    assert "<think>" not in tokenizer.decode(tokenized(tokenizer, row("q", "a"))[0].input_ids)


def test_an_answer_with_a_thought_is_asked_for_with_thinking_on(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, THINKING)
    example = tokenized(tokenizer, row("q", "<think>hm</think>a"))[0]
    assert tokenizer.decode(example.input_ids[: example.prompt_length]).endswith("<|start|>assistant\n<think>")
    assert learned(tokenizer, example) == "hm</think>a<|end|>"


THOUGHTFUL = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
"""Begins a thought in every prompt and leaves it out of every answer, as DeepSeek-R1's."""


@pytest.mark.parametrize("thought", ["<think>\nhm\n</think>\n\na", "hm\n</think>\n\na"])
def test_a_thought_the_template_leaves_out_is_learned_where_the_prompt_begins_it(tmp_path: Path, thought: str) -> None:
    tokenizer = load(tmp_path, THOUGHTFUL)
    first, second = tokenized(tokenizer, row("q", thought, "r", "<think>\nso\n</think>b"))
    assert tokenizer.decode(first.input_ids) == (
        "<|start|>user\nq<|end|>\n<|start|>assistant\n<think>\nhm\n</think>\n\na<|end|>"
    )
    assert learned(tokenizer, second) == "so\n</think>\n\nb<|end|>"
    assert tokenizer.decode(second.input_ids).count("think>") == 2, "the earlier thought is left out"


@pytest.mark.parametrize("answer", ["a", "<think>\n\n</think>\n\na"])
def test_where_every_prompt_begins_a_thought_an_answer_without_one_ends_it_at_once(tmp_path: Path, answer: str) -> None:
    tokenizer = load(tmp_path, THOUGHTFUL)
    assert learned(tokenizer, tokenized(tokenizer, row("q", answer))[0]) == "\n</think>\n\na<|end|>"


def test_an_empty_thought_is_none(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, THINKING)
    bare, empty = tokenized(tokenizer, row("q", "a"), row("q", "<think>\n\n</think>\n\na"))
    assert tokenizer.decode(empty.input_ids) == tokenizer.decode(bare.input_ids)


def test_a_thought_that_the_template_leaves_out_is_not_lost_in_silence(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, THOUGHTFUL.replace("<think>\n{% endif %}", "{% endif %}"))
    with pytest.raises(
        TrainerFailure, match=r"t.jsonl line 1: the model's chat template leaves out the reasoning of an answer"
    ):
        tokenized(tokenizer, row("q", "<think>hm</think>a"))


def test_where_all_is_learned_a_conversation_stays_whole_and_nothing_is_learned_twice(tmp_path: Path) -> None:
    tokenizer, findings = load(tmp_path, FORGETFUL), Findings()
    format = prompt_format(tokenizer, LossOn.ALL)
    found = [example for _, example in tokenize([row("q", "a", "r", "b")], format, tokenizer, findings)]
    assert [tokenizer.decode(example.input_ids) for example in found] == [
        "<|start|>user\nq<|end|>\n<|start|>assistant\n(short)<|end|>\n"
        "<|start|>user\nr<|end|>\n<|start|>assistant\nb<|end|>"
    ]
    assert findings.taken_apart == 0


def test_a_conversation_whose_parts_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "APART_CHARACTERS", 12 * (1 + render.AROUND) - 1)
    tokenizer = load(tmp_path, FORGETFUL)
    # q a, q a r b and q a r b s c are 2, 4 and 6 messages of one character.
    with pytest.raises(TrainerFailure, match=r"each with all messages before it, have over 0 Mi.*\(3 answers\)"):
        tokenized(tokenizer, row("q", "a", "r", "b", "s", "c"))
    assert len(tokenized(tokenizer, row("q", "a", "r", "b"))) == 2


COUNTED = TEMPLATE.replace("{{ m.content }}", "{{ loop.index }}. {{ m.content }}").replace(
    "assistant\n{% endif %}", "assistant\n{{ messages | length + 1 }}. {% endif %}"
)
"""Writes each turn's number, so that nothing is true of one turn that another shows."""


@pytest.mark.parametrize(("template", "most"), [(TEMPLATE, 60_000), (FORGETFUL, 20_000)])
def test_a_conversation_of_thousands_of_turns_does_not_take_their_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, most: int
) -> None:
    format, rendered = prompt_format(load(tmp_path, template)), []
    turn = PromptFormat._turn
    monkeypatch.setattr(PromptFormat, "_turn", lambda self, message: rendered.append(0) or turn(self, message))
    conversation = row(*(f"turn {n}" for n in range(4000)))
    if template == TEMPLATE:
        (whole,) = format.render(conversation)
        assert [whole.text[start:end] for start, end in whole.answers] == [
            f"turn {n}<|end|>" for n in range(1, 4000, 2)
        ]
    else:
        with pytest.raises(InvalidRow, match="have over 16 Mi characters"):
            format.render(conversation)
    assert len(rendered) < most


def test_where_a_turn_depends_on_its_place_all_before_it_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = prompt_format(load(tmp_path, COUNTED))
    conversation = row(*(f"turn {n}" for n in range(40)))
    (whole,) = format.render(conversation)
    assert [whole.text[start:end] for start, end in whole.answers] == [f"turn {n}<|end|>" for n in range(1, 40, 2)]
    monkeypatch.setattr(render, "APART_CHARACTERS", 10)
    with pytest.raises(InvalidRow, match=r"each with all messages before it"):
        format.render(conversation)


def test_an_answer_that_does_not_follow_its_prompt_is_refused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE.replace("assistant\n{% endif %}", "ASSISTANT\n{% endif %}"))
    with pytest.raises(TrainerFailure, match=r"t.jsonl line 1: the model's chat template does not write an answer"):
        tokenized(tokenizer, row("q", "a"))


def test_a_template_without_end_of_turn_gets_the_tokenizers_end_of_sequence(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, UNENDED)
    example = tokenized(tokenizer, row("q", "a", "r", "b"))[0]
    assert learned(tokenizer, example) == "ab<|end|>"


def test_the_date_in_a_template_is_always_the_same(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, DATED)
    assert tokenizer.decode(tokenized(tokenizer, row("q", "a"))[0].input_ids).startswith("26 Jul 2024")


def test_a_row_that_the_template_rejects_is_reported_with_file_and_line(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, LLAMA_2)
    with pytest.raises(TrainerFailure, match=r"t.jsonl line 1: the model's chat template rejects it \(System role not"):
        tokenized(tokenizer, row("q", "a", system="s"))


@pytest.mark.parametrize("bos", [True, False])
def test_without_a_template_question_and_answer_follow_each_other(tmp_path: Path, bos: bool) -> None:
    tokenizer = load(tmp_path, None, bos)
    format = prompt_format(tokenizer)
    example = tokenized(tokenizer, row("q", "a", system="s"))[0]
    assert format.kind == "Plain"
    assert tokenizer.decode(example.input_ids) == "<s>" * bos + "s\n\nq\n\na<|end|>"
    assert learned(tokenizer, example) == "a<|end|>"


def test_the_plain_formats_template_says_the_same_in_the_published_tokenizer(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, None, bos=True)
    example = tokenized(tokenizer, row("q", "a", system="s"))[0]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    found = tokenizer.apply_chat_template(chat, chat_template=prompt_format(tokenizer).source)["input_ids"]
    assert found == example.input_ids[: example.prompt_length].tolist()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content", "cannot render"),
        ("{{ raise_exception('no chat') }}", "no chat"),
        ("nothing", "cannot render"),
    ],
)
def test_a_template_that_cannot_render_a_question_and_its_answer_is_unsupported(
    tmp_path: Path, template: str, said: str
) -> None:
    with pytest.raises(TrainerFailure, match=said) as caught:
        prompt_format(load(tmp_path, template))
    assert caught.value.reason is FailureReason.MODEL_UNSUPPORTED


def test_stop_tokens_are_the_tokenizers_and_the_templates(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, TEMPLATE.replace("<|end|>", "<|start|>"))
    assert [tokenizer.decode(token) for token in prompt_format(tokenizer).stop_token_ids] == ["<|end|>", "<|start|>"]


def test_rows_keep_their_order_over_many_batches(tokenizer: Any) -> None:
    rows = [row(f"q{n}", f"a{n}") for n in range(1200)]
    examples = tokenized(tokenizer, *rows)
    assert [example.answer for example in examples] == [f"a{n}" for n in range(1200)]
    assert all(example.input_ids.dtype == np.int32 and example.supervised.dtype == np.bool_ for example in examples)
