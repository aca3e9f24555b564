"""Few-shot prompts: prompts of test rows with examples before them, for the base model."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.handover.prepared import Example
from finetune_trainer.pod.liveness.heartbeat import attended
from finetune_trainer.randomness import few_of_many
from finetune_trainer.rows.row_format import Message, system_of, thinks
from finetune_trainer.tokens.render import PromptFormat

EXAMPLES, DRAWS = 5, 3
LOOKED_AT = 1000
"""Maximum number of training rows that are tried as examples in each draw."""
Prompt = NDArray[np.int32]


@dataclass(frozen=True)
class Draw:
    """The prompts of all test rows, with the same examples before each prompt."""

    examples: int
    prompts: Sequence[Prompt]


def few_shot_draws(
    train: Sequence[Example],
    held_out: Sequence[Example],
    format: PromptFormat,
    tokenizer: Any,
    room: int,
    seed: int,
) -> list[Draw]:
    """Returns up to three draws of five examples from `train`, which are put before every prompt of `held_out`.

    No example is in the cluster of a held-out row, and no two examples are in one cluster. A draw has fewer examples if
    a prompt would be longer than `room` tokens. A draw without room for any example is left out."""
    taken = {example.cluster for example in held_out}
    budget = room - max(example.prompt_length for example in held_out)
    found = []
    for number in range(DRAWS):
        chosen = choose_examples(train, taken, budget, f"few-shot/{seed}/{number}")
        while chosen:
            asked = (format.prompt(with_examples(chosen, row), thinks(row.answer)) for row in held_out)
            prompts = [encode(text, tokenizer) for text in attended(asked)]
            if max(map(len, prompts)) <= room:
                found.append(Draw(len(chosen), prompts))
                break
            chosen = chosen[:-1]
    return found


def why_none(train: Sequence[Example], held_out: Sequence[Example], room: int, seed: int) -> str:
    """Says why `few_shot_draws`, with the same arguments, returned no draw. A sentence for the log."""
    taken = {example.cluster for example in held_out}
    looked_at = [train[index] for index in few_of_many(len(train), LOOKED_AT, f"few-shot/{seed}/0")]
    if any(example.prompt and example.cluster not in taken for example in looked_at):
        why = f"no example fits into {room:,} tokens together with the longest held-out prompt"
    elif any(example.prompt for example in looked_at):
        why = "each training row asks the same, or nearly the same, as a held-out row, so that no row can be an example"
    else:
        why = "the training rows are texts without a prompt"
    return f"Few-shot prompting is not measured: {why}."


def choose_examples(train: Sequence[Example], taken: Set[int], budget: int, seed: str) -> list[Example]:
    """Returns up to five rows, drawn by `seed`, from different clusters that are not in `taken`. Together the rows have
    at most `budget` tokens."""
    chosen: list[Example] = []
    for index in few_of_many(len(train), LOOKED_AT, seed):
        example = train[index]
        if example.prompt and example.cluster not in taken and len(example.input_ids) <= budget:
            chosen.append(example)
            taken, budget = taken | {example.cluster}, budget - len(example.input_ids)
        if len(chosen) == EXAMPLES:
            break
    return chosen


def with_examples(examples: Sequence[Example], row: Example) -> tuple[Message, ...]:
    """Returns the conversation that asks the question of `row` after the examples.

    If the examples have the same system message as `row`, or none of them has one, this message is first. Otherwise a
    system message can contain the material of its question, such as a document. Each system message is then in front of
    the first user turn of its own conversation, also for `row`, so that the examples and the question have one form."""
    asked = row.messages[:-1]
    conversations = [*(example.messages for example in examples), asked]
    systems = {system_of(messages) for messages in conversations}
    if len(systems) == 1:
        first = [message for message in asked if message.role == "system"]
        return (*first, *(turn for messages in conversations for turn in messages if turn.role != "system"))
    return tuple(turn for messages in conversations for turn in in_user_turn(messages))


def in_user_turn(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with the system message in front of the first user turn. The chat templates of models
    without a system role (Gemma 2, Mistral) do the same."""
    turns = [message for message in messages if message.role != "system"]
    if system := system_of(messages):
        turns[0] = turns[0]._replace(content=f"{system}\n\n{turns[0].content}")
    return turns


def encode(text: str, tokenizer: Any) -> Prompt:
    """Returns the tokens of a rendered prompt, which already contains all special tokens. Shape [tokens]."""
    return np.array(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)
