"""Rendered rows as token ids, with a mark on every token that is learned."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from finetune_trainer.findings import Findings, InvalidRow
from finetune_trainer.progress import Progress
from finetune_trainer.render import PromptFormat, Rendered
from finetune_trainer.row_format import Row
from finetune_trainer.row_store import Example

BATCH = 512
"""Rows given to the tokenizer at a time; it spreads them over the cores."""


def tokenize(
    rows: Iterable[Row], format: PromptFormat, tokenizer: Any, findings: Findings
) -> Iterator[tuple[Row, Example]]:
    """Each row with its tokens; rows the chat template cannot render go to `findings`."""
    backend = tokenizer.backend_tokenizer
    # What tokenizer.json says of these is for other uses: a row is never cut here.
    backend.no_truncation()
    backend.no_padding()
    progress = Progress("Tokenizing", "rows")
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        rendered = list(_rendered(batch, format, findings))
        yield from _examples(rendered, backend)
        progress.advance(len(batch))


def _rendered(rows: list[Row], format: PromptFormat, findings: Findings) -> Iterator[tuple[Row, Rendered]]:
    for row in rows:
        try:
            yield row, format.render(row)
        except InvalidRow as problem:
            findings.invalid_row(row.source, problem)


def _examples(rendered: list[tuple[Row, Rendered]], backend: Any) -> Iterator[tuple[Row, Example]]:
    """Tokenizes the whole texts and, to find where answers start, everything before each answer: what a server will
    tokenize when the model is to answer."""
    whole = backend.encode_batch([text.text for _, text in rendered], add_special_tokens=False)
    starts = [text.text[:start] for _, text in rendered for start, _ in text.answers]
    before = iter(backend.encode_batch(starts, add_special_tokens=False))
    for (row, text), encoding in zip(rendered, whole, strict=True):
        prompts = [next(before).ids for _ in text.answers]
        yield row, _example(row, text, encoding, prompts, backend)


def _example(row: Row, text: Rendered, encoding: Any, prompts: list[list[int]], backend: Any) -> Example:
    ids, supervised = encoding.ids, np.zeros(len(encoding.ids), dtype=np.bool_)
    for (_, end), prompt in zip(text.answers[:-1], prompts[:-1], strict=True):
        supervised[_common(prompt, ids) : _token_end(encoding, end)] = True
    prompt = prompts[-1]
    if ids[: len(prompt)] != prompt:
        # A token would reach over the boundary, which it cannot when the prompt comes first and the answer is written.
        answer = backend.encode(text.text[text.answers[-1][0] :], add_special_tokens=False).ids
        kept = np.zeros(len(prompt) + len(answer), dtype=np.bool_)
        shared = _common(prompt, ids)
        kept[:shared] = supervised[:shared]
        ids, supervised = prompt + answer, kept
    supervised[len(prompt) :] = True
    return Example(
        input_ids=np.array(ids, dtype=np.int32),
        supervised=supervised,
        prompt_length=len(prompt),
        messages=row.messages,
        source=row.source,
        mixture=row.mixture,
    )


def _common(first: list[int], second: list[int]) -> int:
    """Length of the longest common beginning."""
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def _token_end(encoding: Any, end: int) -> int:
    """Index after the last token that lies before character `end`. White space may belong to no token."""
    tokens = (encoding.char_to_token(position) for position in range(end - 1, -1, -1))
    return next((token + 1 for token in tokens if token is not None), 0)
