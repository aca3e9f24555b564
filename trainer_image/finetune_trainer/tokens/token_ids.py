"""Checks token ids against the rows of the model's embedding. On a GPU, an id without a row looks like a broken GPU."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from finetune_api.reasons import FailureReason
from finetune_trainer.base.base_model import BaseModel
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.row_format import Row
from finetune_trainer.sources.findings import place_of
from finetune_trainer.tokens.row_store import Example

NAMED = 5
"""Maximum number of tokens that a message names."""


def require_rows(examples: Iterable[tuple[Row, Example]], model: BaseModel) -> Iterator[tuple[Row, Example]]:
    """Yields the examples unchanged. Raises TrainerFailure ModelUnsupported at the first example with a token id that
    has no row in the embedding."""
    rows = model.rows
    for row, example in examples:
        if len(example.input_ids) and int(example.input_ids.max()) >= rows:
            beyond = np.unique(example.input_ids[example.input_ids >= rows]).tolist()
            raise TrainerFailure(
                FailureReason.MODEL_UNSUPPORTED,
                f"The tokenizer does not fit the model's weights. {place_of(example.place)} contains "
                f"{_named(beyond, model.tokenizer)}, but the embedding has only {rows:,} rows, for ids up to "
                f"{rows - 1:,}.",
                "Use the tokenizer that was saved with these weights, or resize the model with "
                "resize_token_embeddings, train the new rows, and use both.",
            )
        yield row, example


def _named(ids: list[int], tokenizer: Any) -> str:
    tokens = tokenizer.convert_ids_to_tokens(ids[:NAMED])
    listed = ", ".join(f"{token} (id {id})" for token, id in zip(tokens, ids, strict=False))
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"token{'s' * (len(ids) > 1)} {listed}{more}"
