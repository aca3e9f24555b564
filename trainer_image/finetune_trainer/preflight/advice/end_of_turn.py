"""Checks whether the output head of the model was ever trained to write the end-of-turn token.

Base models contain tokens that were never trained. Often these are the tokens of a chat template. Their rows of the
output head all get the same gradient, so these rows stay equal (Land and Bartolo 2024, Fishing for Magikarp). An
adapter on the layers before the head cannot make one of these tokens more likely than the others."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from finetune_api.spec.method import Method, MethodType
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.base.weights import FLOATS, read_rows, spread
from finetune_trainer.base.weights_fit import Vocabulary
from finetune_trainer.sizing.saved_modules import is_in_saved, is_saved
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.tokens.row_store import Example

COMPARED = 128
"""Maximum number of other tokens whose rows are read. The tokens with the nearest ids are chosen."""
BEYOND = 8
"""Rows after the last token of the tokenizer that are read. No text contains these ids."""
ORDINARY = 16
"""Tokens, evenly spread over the vocabulary, whose rows give the usual norm of a trained row."""
LOOKED_AT = 64
"""Training rows whose last token is checked."""
EQUAL = 0.01
"""Two rows count as equal up to this distance, relative to their norm. bfloat16 rounds by 0.004, and rows that
resize_token_embeddings draws differ by less. The distance of trained rows is about their whole norm."""
SPARE = re.compile(r"[<\[].*(unused|reserved|extra|control|placeholder|dummy|special)", re.IGNORECASE)
"""Matches the names of reserved tokens."""


def untrained_end(
    storage: JobStorage, model: BaseModel, method: Method, rows: Sequence[Example], ends: Collection[int]
) -> str | None:
    """Returns the message about a token of `ends` that ends `rows` and that the output head was never trained to write.
    Returns None if no such token is found, or if the job trains the head. Reads a few hundred rows of the head."""
    found = model.vocabulary
    if found is None or found.head.dtype not in FLOATS or trains_head(method, found):
        return None
    for end in sorted({int(row.input_ids[-1]) for row in rows[:LOOKED_AT]} & {*ends} & {*range(found.head.shape[0])}):
        if shown := _shown(storage, model.tokenizer, found, end):
            return (
                "The model was never trained to end an answer. In its output head, the row of the end-of-turn token "
                f"{_name(model.tokenizer, end)} {shown}. Adapters on other layers do not change this row, so answers "
                f"will continue up to the maximum length. {_trained(found)}, or choose another base model, such as the "
                "instruct variant."
            )
    return None


def _trained(found: Vocabulary) -> str:
    """Returns how a job can train the output head, as the beginning of a sentence."""
    if found.tied and not found.ties_in_peft:
        return "Set spec.method.type to Full"
    return f"Set spec.method.lora.modulesToSave to [{', '.join(found.modules)}]"


def _shown(storage: JobStorage, tokenizer: Any, found: Vocabulary, end: int) -> str:
    """Returns the sign that the row of the token `end` was never trained, or "" if there is no sign."""
    others, ordinary = _alike(tokenizer, found, end), _ordinary(tokenizer, found)
    read = read_rows(storage, found.head, [end, *others, *ordinary])
    mine, rest, usual = read[0], read[1 : 1 + len(others)], read[1 + len(others) :]
    length = np.linalg.norm(mine)
    if length <= EQUAL * np.median(np.linalg.norm(usual, axis=1)):
        return "is almost zero"
    same = np.flatnonzero(np.linalg.norm(rest - mine, axis=1) <= EQUAL * length)
    return f"equals the row of {_name(tokenizer, others[same[0]])}" if len(same) else ""


def _ordinary(tokenizer: Any, found: Vocabulary) -> list[int]:
    """Returns tokens that are evenly spread over the vocabulary."""
    return spread(min(len(tokenizer), found.head.shape[0]), ORDINARY)


def trains_head(method: Method, found: Vocabulary) -> bool:
    """Returns whether the job changes the output head: fully, or with an adapter on the head."""
    if method.type is MethodType.FULL:
        return True
    saved = method.lora.modules_to_save or []
    if is_in_saved(found.head_module, saved) or (found.tied and is_saved("lm_head", saved)):
        return True
    return any(f".{found.head_module}".endswith(f".{name}") for name in method.lora.target_modules)


def _alike(tokenizer: Any, found: Vocabulary, end: int) -> list[int]:
    """Returns other tokens that may be untrained: added tokens, reserved tokens, and ids after the last token."""
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
