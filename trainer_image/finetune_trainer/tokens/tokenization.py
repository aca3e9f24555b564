"""Turns rendered rows into token ids and marks every token that is trained on."""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from math import ceil
from typing import Any

import numpy as np

from finetune_trainer.pod.progress import Progress
from finetune_trainer.rows.row_format import DOCUMENT, Message, Row
from finetune_trainer.sources.findings import Findings, InvalidRow
from finetune_trainer.tokens.render import PromptFormat, Rendered
from finetune_trainer.tokens.row_store import Example

BATCH, BATCH_CHARACTERS = 512, 1 << 20
"""Maximum rows and approximate characters in one batch for the tokenizer, which uses all cores."""
CHECKED = 100
"""For this many answers, the start is found in two ways. If the results agree, only the fast way is used afterwards."""
NEAR = 256
"""Characters before an answer that are searched for the special token at the start of its turn."""

Batch = list[tuple[Row, Rendered]]


def tokenize(
    rows: Iterable[Row], format: PromptFormat, tokenizer: Any, findings: Findings, longest_document: int | None = None
) -> Iterator[tuple[Row, Example]]:
    """Yields each row with its tokens. Rows that the chat template cannot render are added to `findings`. A row of
    format Text gives one example, or several of at most `longest_document` tokens. A conversation gives one example, or
    one for each answer, see `PromptFormat.render`. One batch is tokenized while the next batch is rendered."""
    backend = tokenizer.backend_tokenizer
    # tokenizer.json may set truncation and padding for other uses. A row is never truncated here.
    backend.no_truncation()
    backend.no_padding()
    progress = Progress("Tokenizing", "rows")
    documents, prompts = _Documents(tokenizer, format.stop_token_ids, longest_document), _Prompts(tokenizer)
    with ThreadPoolExecutor(1) as ahead:
        running: tuple[Batch, Future[Any]] | None = None
        for batch in _batches(_rendered(rows, format, findings)):
            texts = [rendered.text for _, rendered in batch]
            next_running = batch, ahead.submit(backend.encode_batch, texts, add_special_tokens=False)
            if running:
                yield from _examples(*running, documents, prompts)
                progress.advance(len(running[0]))
            running = next_running
        if running:
            yield from _examples(*running, documents, prompts)


def _rendered(rows: Iterable[Row], format: PromptFormat, findings: Findings) -> Iterator[tuple[Row, Rendered]]:
    for row in rows:
        try:
            parts = format.render(row)
        except InvalidRow as problem:
            findings.invalid_row(row.place, problem)
            continue
        findings.taken_apart += len(parts) > 1
        yield from ((row, part) for part in parts)


def _batches(rows: Iterable[tuple[Row, Rendered]]) -> Iterator[Batch]:
    batch: Batch = []
    characters = 0
    for row, rendered in rows:
        batch.append((row, rendered))
        characters += len(rendered.text)
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _examples(
    batch: Batch, encodings: "Future[Any]", documents: "_Documents", prompts: "_Prompts"
) -> Iterator[tuple[Row, Example]]:
    for (row, rendered), encoding in zip(batch, encodings.result(), strict=True):
        if rendered.answers:
            yield row, prompts.example(row, rendered, encoding)
        else:
            yield from ((row, example) for example in documents.examples(row, encoding))


class _Prompts:
    """Tokenizes rows with a prompt and an answer.

    The tokens before an answer must be those that a server gets when it tokenizes the prompt alone. They are derived
    from the tokens of the whole row. A special token splits a text: the parts before and after it are tokenized
    separately. The text from the last special token to the answer is nearly always the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder.values()
        marks = [t.content for t in added if t.special and not (t.lstrip or t.rstrip or t.single_word)]
        self._mark = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))) if marks else None
        self._opening, self._mark_length = "", 0
        self._opening_ids: list[int] = []
        self._checked = 0

    def example(self, row: Row, rendered: Rendered, encoding: Any) -> Example:
        """Returns the tokens of the row, with the tokens that are trained on."""
        text, answers = rendered.text, rendered.answers
        ids: list[int] = encoding.ids
        supervised = np.zeros(len(ids), dtype=np.bool_)
        ends = [answers[0][0], *(end for _, end in answers)]
        for number, (start, end) in enumerate(answers[:-1]):
            shared = self._shared(text, ends[number], start, encoding, ids, exact=number < CHECKED)
            supervised[shared : _token_end(encoding, end)] = True
        prompt = self._before(text, ends[-2], answers[-1][0], encoding, ids)
        if ids[: len(prompt)] != prompt:
            # A token crosses the boundary between prompt and answer. That cannot happen in generation, so prompt and
            # answer are tokenized separately.
            answer = self._ids(text[answers[-1][0] :])
            kept = np.zeros(len(prompt) + len(answer), dtype=np.bool_)
            shared = _common(prompt, ids)
            kept[:shared] = supervised[:shared]
            ids, supervised = prompt + answer, kept
        supervised[len(prompt) :] = True
        return Example(
            input_ids=np.array(ids, dtype=np.int32),
            supervised=supervised,
            prompt_length=len(prompt),
            messages=rendered.messages,
            place=row.place,
            mixture=row.mixture,
        )

    def _shared(self, text: str, since: int, start: int, encoding: Any, ids: list[int], exact: bool) -> int:
        """Returns the number of tokens of the whole text before character `start`. The tokens before `start` are not
        compared one by one, because that is slow for each answer of a long conversation. `exact`: if no special token
        begins the turn, tokenize all text before `start`. Otherwise, a token that crosses `start` belongs to the
        answer."""
        token = self._told(text, since, start, encoding) if self._checked >= CHECKED else None
        if token is not None:
            return token + _common(self._opening_ids, ids[token : token + len(self._opening_ids) + 1])
        if exact:
            return _common(self._before(text, since, start, encoding, ids), ids)
        before = _token_end(encoding, start)
        return before - (before > 0 and encoding.token_to_chars(before - 1)[1] > start)

    def _before(self, text: str, since: int, start: int, encoding: Any, ids: list[int]) -> list[int]:
        """Returns the tokens of `text` up to character `start`. `since`: the end of the previous answer, or `start`."""
        token = self._told(text, since, start, encoding)
        found = None if token is None else ids[:token] + self._opening_ids
        if found is not None and self._checked >= CHECKED:
            return found
        exact = self._ids(text[:start])
        self._checked += 1
        if found is not None and found != exact:
            self._mark = None  # the fast way is wrong for this tokenizer
        return exact

    def _told(self, text: str, since: int, start: int, encoding: Any) -> int | None:
        """Returns the number of tokens of the whole text before the opening of the turn, or None if it cannot be
        derived. The tokens up to `start` are these tokens and `_opening_ids`."""
        if self._mark is None:
            return None
        if not self._opening or not text.startswith(self._opening, start - len(self._opening)):
            marks = list(self._mark.finditer(text, max(0, min(since, start) - NEAR), start))
            if not marks:
                return None
            self._opening, self._mark_length = text[marks[-1].start() : start], len(marks[-1][0])
            self._opening_ids = self._ids(self._opening)
        begin = start - len(self._opening)
        token: int | None = encoding.char_to_token(begin)
        if token is None or encoding.token_to_chars(token) != (begin, begin + self._mark_length):
            return None
        return token

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return found


class _Documents:
    """Tokenizes rows of format Text. Every token is trained on except the first token of each piece, which has no
    context."""

    def __init__(self, tokenizer: Any, stops: Sequence[int], longest: int | None) -> None:
        """`stops`: tokens that end a text or a turn. One of them at the end of a text is enough."""
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self._before = [tokenizer.bos_token_id] if adds_bos else []
        self._after, self._stops = [tokenizer.eos_token_id], stops
        self._longest = longest

    def examples(self, row: Row, encoding: Any) -> Iterator[Example]:
        """Yields the document in as few pieces as possible, of nearly equal length. Each token is in exactly one piece.
        The tokens that begin and end a text are added if the document does not contain them."""
        text = row.messages[0].content
        before = [] if encoding.ids[:1] == self._before else self._before
        ids = np.array([*before, *encoding.ids, *self._end(text, encoding)], dtype=np.int32)
        pieces = np.array_split(ids, ceil(len(ids) / self._longest) if self._longest else 1)
        texts = _texts(text, encoding, [len(piece) for piece in pieces], len(before))
        for piece, said in zip(pieces, texts, strict=True):
            supervised = np.ones(len(piece), dtype=np.bool_)
            supervised[0] = False
            yield Example(piece, supervised, 1, (Message(DOCUMENT, said),), row.place, mixture=row.mixture)

    def _end(self, text: str, encoding: Any) -> list[int]:
        """Returns the tokens to add at the end of a text. There are none if the last token before white space is in
        `stops`."""
        end = len(text.rstrip())
        token = encoding.char_to_token(end - 1) if end else None
        return [] if token is not None and encoding.ids[token] in self._stops else self._after


def _texts(text: str, encoding: Any, lengths: list[int], before: int) -> list[str]:
    """Returns the text of each piece. The pieces together are `text`. `before`: number of tokens before the text."""
    if len(lengths) == 1:
        return [text]
    firsts = (token - before for token in accumulate(lengths[:-1]))
    cuts = [encoding.token_to_chars(first)[0] if first < len(encoding) else len(text) for first in firsts]
    cuts = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _common(first: list[int], second: list[int]) -> int:
    """Returns the length of the longest common prefix."""
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def _token_end(encoding: Any, end: int) -> int:
    """Returns the index after the last token before character `end`. White space may belong to no token."""
    tokens = (encoding.char_to_token(position) for position in range(end - 1, -1, -1))
    return next((token + 1 for token in tokens if token is not None), 0)
