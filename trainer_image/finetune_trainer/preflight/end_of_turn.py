"""Whether the model can end an answer: whether its output head was ever trained to write the token that does.

Base models ship with tokens that were never trained, among them, often, those of a chat template. All such rows of the
output head get the same gradient, so that they stay equal (Land and Bartolo 2024, Fishing for Magikarp), and an adapter
on the layers before the head cannot make one of them likelier than the others."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from finetune_api.spec.method import Method, MethodType
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.weights import FLOATS, read_rows, spread
from finetune_trainer.base.weights_fit import Vocabulary
from finetune_trainer.pod.storage import JobStorage
from finetune_trainer.tokens.row_store import Example

COMPARED = 128
"""Other tokens whose rows are read at most, those with the nearest ids."""
BEYOND = 8
"""Rows past the tokenizer's last token that are read: no text has ever had these."""
ORDINARY = 16
"""Tokens, spread over the vocabulary, that say how long a trained row is."""
LOOKED_AT = 64
"""Rows to learn from whose last token is looked at."""
EQUAL = 0.01
"""Distance of two rows, as a share of their length, up to which they are equal: bfloat16 rounds by 0.004, and rows
that resize_token_embeddings draws differ by less. Trained rows are apart by about their whole length."""
SPARE = re.compile(r"[<\[].*(unused|reserved|extra|control|placeholder|dummy|special)", re.IGNORECASE)
"""In the names of tokens that are kept for later."""


def untrained_end(
    storage: JobStorage, model: BaseModel, method: Method, rows: Sequence[Example], ends: Collection[int]
) -> str | None:
    """What to say where the output head was never trained to write a token of `ends` that `rows` end with; None where
    nothing shows that, or where the job trains the head. Reads a few hundred rows of the head."""
    found = model.vocabulary
    if found is None or found.head.dtype not in FLOATS or trains_head(method, found):
        return None
    for end in sorted({int(row.input_ids[-1]) for row in rows[:LOOKED_AT]} & {*ends} & {*range(found.head.shape[0])}):
        if shown := _shown(storage, model.tokenizer, found, end):
            return (
                "The model was never trained to end an answer: the row of its output head for "
                f"{_name(model.tokenizer, end)}, which ends an answer, {shown}. Adapters on other layers do not change "
                "that, so answers will run on to the longest length. Set method.lora.modulesToSave to "
                f"[{', '.join(found.modules)}], or choose another base model, such as the instruct variant."
            )
    return None


def _shown(storage: JobStorage, tokenizer: Any, found: Vocabulary, end: int) -> str:
    """How the row of the token `end` shows that it was never trained; "" where it does not."""
    others, ordinary = _alike(tokenizer, found, end), _ordinary(tokenizer, found)
    read = read_rows(storage, found.head, [end, *others, *ordinary])
    mine, rest, usual = read[0], read[1 : 1 + len(others)], read[1 + len(others) :]
    length = np.linalg.norm(mine)
    if length <= EQUAL * np.median(np.linalg.norm(usual, axis=1)):
        return "is all but zero"
    same = np.flatnonzero(np.linalg.norm(rest - mine, axis=1) <= EQUAL * length)
    return f"equals that of {_name(tokenizer, others[same[0]])}" if len(same) else ""


def _ordinary(tokenizer: Any, found: Vocabulary) -> list[int]:
    """Tokens spread over the vocabulary."""
    return spread(min(len(tokenizer), found.head.shape[0]), ORDINARY)


def trains_head(method: Method, found: Vocabulary) -> bool:
    """Whether the job changes the output head: whole, or by an adapter of its own."""
    if method.type is MethodType.FULL:
        return True
    named = [*(method.lora.modules_to_save or []), *method.lora.target_modules]
    return any(f".{found.head_name}".endswith(f".{name}.weight") for name in named)


def _alike(tokenizer: Any, found: Vocabulary, end: int) -> list[int]:
    """Tokens that may never have been trained either: added ones, those kept for later, those past the tokenizer."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    spare = {id for token, id in vocabulary.items() if SPARE.match(token)}
    last = max(vocabulary.values())
    beyond = set(range(last + 1, last + 1 + BEYOND))
    others = {*tokenizer.get_added_vocab().values(), *spare, *beyond} - {end}
    read = [id for id in others if id < found.head.shape[0]]
    return sorted(sorted(read, key=lambda id: abs(id - end))[:COMPARED])


def _name(tokenizer: Any, id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(id) if id < len(tokenizer) else None
    return f"{token} (id {id})" if token else f"id {id}"
