"""Rendered rows as token ids, with a mark on every token that is learned."""

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
"""Rows, and about how much text, given to the tokenizer at a time; it spreads them over the cores."""
CHECKED = 100
"""Answers whose beginning is found in both ways before the quick one is trusted."""
NEAR = 256
"""Characters before an answer in which the special token that begins its turn is looked for."""

Batch = list[tuple[Row, Rendered]]


def tokenize(
    rows: Iterable[Row], format: PromptFormat, tokenizer: Any, findings: Findings, longest_document: int | None = None
) -> Iterator[tuple[Row, Example]]:
    """Each row with its tokens; rows the chat template cannot render go to `findings`. A row of format Text gives one
    example, or several of at most `longest_document` tokens; a conversation one, or one for each answer, as
    `PromptFormat.render` has it. One batch is tokenized while the next is rendered."""
    backend = tokenizer.backend_tokenizer
    # What tokenizer.json says of these is for other uses: a row is never cut here.
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
    """Rows that ask and answer.

    The tokens before an answer are those a server gets when it tokenizes the prompt alone. They are told from the
    tokens of the whole row: a special token parts a text, so that what is before it and what is after it are tokenized
    apart, and all that the template writes from the last special token to the answer is nearly always the same."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder.values()
        marks = [t.content for t in added if t.special and not (t.lstrip or t.rstrip or t.single_word)]
        self._mark = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True)))) if marks else None
        self._opening, self._mark_length = "", 0
        self._opening_ids: list[int] = []
        self._checked = 0

    def example(self, row: Row, rendered: Rendered, encoding: Any) -> Example:
        """The row's tokens and which of them are learned."""
        text, answers = rendered.text, rendered.answers
        ids: list[int] = encoding.ids
        supervised = np.zeros(len(ids), dtype=np.bool_)
        ends = [answers[0][0], *(end for _, end in answers)]
        for number, (start, end) in enumerate(answers[:-1]):
            shared = self._shared(text, ends[number], start, encoding, ids, exact=number < CHECKED)
            supervised[shared : _token_end(encoding, end)] = True
        prompt = self._before(text, ends[-2], answers[-1][0], encoding, ids)
        if ids[: len(prompt)] != prompt:
            # A token would reach over the boundary, which it cannot when the prompt comes first and the answer is
            # written.
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
        """How many tokens of the whole text stand for what is before character `start`. Not by all tokens before it,
        which would be copied and compared for each answer of a long conversation. `exact`: where no special token
        begins the turn, all before it is tokenized; else a token that reaches over `start` is the answer's."""
        token = self._told(text, since, start, encoding) if self._checked >= CHECKED else None
        if token is not None:
            return token + _common(self._opening_ids, ids[token : token + len(self._opening_ids) + 1])
        if exact:
            return _common(self._before(text, since, start, encoding, ids), ids)
        before = _token_end(encoding, start)
        return before - (before > 0 and encoding.token_to_chars(before - 1)[1] > start)

    def _before(self, text: str, since: int, start: int, encoding: Any, ids: list[int]) -> list[int]:
        """Tokens of `text` up to character `start`. `since`: where the answer before it ends, or else `start`."""
        token = self._told(text, since, start, encoding)
        found = None if token is None else ids[:token] + self._opening_ids
        if found is not None and self._checked >= CHECKED:
            return found
        exact = self._ids(text[:start])
        self._checked += 1
        if found is not None and found != exact:
            self._mark = None  # not a tokenizer of which this is true
        return exact

    def _told(self, text: str, since: int, start: int, encoding: Any) -> int | None:
        """The number of tokens before the same, told from those of the whole text, to which `_opening_ids` have to be
        added; None where it cannot be."""
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
    """Rows of format Text: every token is learned but the first of each piece, before which nothing stands."""

    def __init__(self, tokenizer: Any, stops: Sequence[int], longest: int | None) -> None:
        """`stops`: tokens that end a text or a turn, of which one is enough."""
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self._before = [tokenizer.bos_token_id] if adds_bos else []
        self._after, self._stops = [tokenizer.eos_token_id], stops
        self._longest = longest

    def examples(self, row: Row, encoding: Any) -> Iterator[Example]:
        """The document, between the tokens that begin and end a text where it does not have them itself, in as few
        pieces as fit, of nearly equal length: no token is lost and none stands in two of them."""
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
        """What is to be added at the end of a text: nothing where one of `stops` is its last token but for white
        space."""
        end = len(text.rstrip())
        token = encoding.char_to_token(end - 1) if end else None
        return [] if token is not None and encoding.ids[token] in self._stops else self._after


def _texts(text: str, encoding: Any, lengths: list[int], before: int) -> list[str]:
    """What the tokens of each piece stand for, together all of `text`. `before`: tokens before those of the text."""
    if len(lengths) == 1:
        return [text]
    firsts = (token - before for token in accumulate(lengths[:-1]))
    cuts = [encoding.token_to_chars(first)[0] if first < len(encoding) else len(text) for first in firsts]
    cuts = [0, *cuts, len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _common(first: list[int], second: list[int]) -> int:
    """Length of the longest common beginning."""
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def _token_end(encoding: Any, end: int) -> int:
    """Index after the last token that lies before character `end`. White space may belong to no token."""
    tokens = (encoding.char_to_token(position) for position in range(end - 1, -1, -1))
    return next((token + 1 for token in tokens if token is not None), 0)
