"""The chat templates of the families in use, which TRL keeps, with versions of its own that mark what is learned.

Whatever a template does with turns and thoughts, a model learns to go on from the very prompt it will be served."""

import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.rows.row_format import Message, Row, thinks
from finetune_trainer.sources.findings import Findings, InvalidRow
from finetune_trainer.tokens.render import prompt_format
from finetune_trainer.tokens.row_store import Example
from finetune_trainer.tokens.tokenization import tokenize
from tests.unit.finetune_trainer.conftest import save_tokenizer

FOLDER = Path(distribution("trl").locate_file("trl/chat_templates"))
SPECIAL = re.compile("<[|\uff5c][^|\uff5c]+[|\uff5c]>|<[a-z]+_of_turn>|<[|]turn>|<turn[|]>")
ENDS = """
    <|im_end|> <|eot_id|> <end_of_turn> <|end|> <turn|> <\uff5cend\u2581of\u2581sentence\uff5c> <|END_OF_TURN_TOKEN|>
""".split()  # noqa: SIM905
"""End-of-sequence tokens, by which the families end a turn."""
FAMILIES = """
    cohere cohere2 deepseek_r1_distill gemma gemma3 gemma4 lfm2 lfm2_2_5 llama3 llama3_1 llama3_2 nemotron_3_nano
    phi3 phi3_5 qwen2_5 qwen3 qwen3_5_think qwen3_6 qwen3_8 qwen3_instruct_2507
""".split()  # noqa: SIM905
THOUGHTS_BEGUN = {"deepseek_r1_distill"}
"""Every prompt begins a thought."""
THOUGHT = "<think>\nlet me see\n</think>\n\n"
ONE, TWO = ("first question", "first answer"), ("first question", "first answer", "second question", "second answer")


def load(name: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    save_tokenizer(folder, source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = next(mark for mark in ENDS if mark in source)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*SPECIAL.findall(source)}), "eos_token": end})
    return tokenizer


def conversation(*contents: str) -> tuple[Message, ...]:
    roles = ("user", "assistant") * len(contents)
    return tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))


def examples(tokenizer: Any, messages: tuple[Message, ...]) -> list[Example]:
    findings = Findings()
    found = tokenize([Row(messages, "t.jsonl:1")], prompt_format(tokenizer), tokenizer, findings)
    made = [example for _, example in found]
    findings.raise_if_invalid()
    return made


def turn(message: Message, source: str) -> dict[str, str]:
    """A message as a client sends it: with the thought apart, as servers give it, where the template takes it so."""
    thought, end, answer = message.content.partition("</think>")
    if not end or not ("reasoning_content" in source and end in source):
        return {"role": message.role, "content": message.content}
    thought = thought.removeprefix("<think>").strip()
    return {"role": message.role, "reasoning_content": thought, "content": answer.strip()}


def served(tokenizer: Any, messages: tuple[Message, ...], thinking: bool) -> str:
    """The prompt that a server makes of messages."""
    chat = [turn(message, tokenizer.chat_template) for message in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return str(text)


@pytest.mark.parametrize("thoughtful", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("contents", [ONE, TWO])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_of_each_last_answer_is_the_prompt_that_a_server_sends(
    name: str, contents: tuple[str, ...], thoughtful: tuple[bool, bool], tmp_path: Path
) -> None:
    tokenizer = load(name, tmp_path)
    answers = [THOUGHT * thinks + answer for thinks, answer in zip(thoughtful, contents[1::2], strict=False)]
    messages = conversation(*(text for pair in zip(contents[::2], answers, strict=True) for text in pair))
    made = examples(tokenizer, messages)
    for example in made:
        prompt = tokenizer.decode(example.input_ids[: example.prompt_length])
        assert prompt == served(tokenizer, example.messages[:-1], thinks(example.answer))
    learned = "".join(tokenizer.decode(example.input_ids[example.supervised]) for example in made)
    assert [learned.count(answer) for answer in contents[1::2]] == [1] * len(answers), "each answer, and once"
    assert learned.count("let me see") == sum(map(thinks, answers)), "and each thought"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_of_a_long_conversation_lie_where_rendering_all_before_each_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = prompt_format(load(name, tmp_path))

    def rendered(row: Row, exact: int) -> Any:
        monkeypatch.setattr("finetune_trainer.tokens.render.EXACT", exact)
        try:
            return format.render(row)
        except InvalidRow as problem:
            return problem.kind

    for thoughtful in (set[int](), {11}, {2, 5, 11}, set(range(12))):
        turns = [(f"question {n}", THOUGHT * (n in thoughtful) + f" answer {n}\n" * (n % 3 + 1)) for n in range(12)]
        messages = conversation(*(text for turn in turns for text in turn))
        for system in ((), (Message("system", "Be brief."),)):
            row = Row((*system, *messages), "t.jsonl:1")
            assert rendered(row, exact=1) == rendered(row, exact=100)


@pytest.mark.parametrize("name", [name for name in FAMILIES if (FOLDER / f"{name}_training.jinja").is_file()])
def test_what_is_learned_of_an_answer_is_what_trl_learns_up_to_its_end(name: str, tmp_path: Path) -> None:
    tokenizer = load(name, tmp_path)
    example = examples(tokenizer, conversation(ONE[0], THOUGHT * (name in THOUGHTS_BEGUN) + ONE[1]))[0]
    chat = [{"role": message.role, "content": message.content} for message in example.messages]
    theirs = tokenizer.apply_chat_template(
        chat,
        chat_template=(FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marked = [token for token, mark in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if mark]
    learned = tokenizer.decode(example.input_ids[example.supervised]) + prompt_format(tokenizer).remainder
    assert tokenizer.decode(marked).endswith(learned)
