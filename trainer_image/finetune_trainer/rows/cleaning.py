"""Cleaning: the steps of `dataset.clean` on every message of every row, each counted, with examples for the report."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import ftfy
import re2

from finetune_api.reasons import FailureReason
from finetune_api.spec.row_cleaning import Clean, Mojibake, UnicodeForm, Whitespace
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.rows.masking import MARKS, Finder, finders, hidden, replaced
from finetune_trainer.rows.row_format import Row
from finetune_trainer.sources.cleaning_record import EXAMPLES, Change, Cleaned

AROUND = 60
"""Characters shown before and after the place that a step changed."""
ROUNDS = 5
"""Times the steps run over one text until they change nothing: one step's work can call for another's, and cleaning a
cleaned text must change nothing. Two rounds, the second to see that nothing is left, are nearly always enough."""

Step = Callable[[str], str]
Changes = dict[str, tuple[str, str]]
"""Each step that changed a text, with the text before and after it."""

_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The look-behinds keep these linear: a run of spaces is looked at from its first one only.
_LINE_TAILS = re.compile(r"(?<![^\S\n])[^\S\n]++\n")
_SPACES = re.compile(r"(?<![^\S\n])[^\S\n]++")
_EMPTY_LINES = re.compile(r"\n{3,}")


class Cleaner:
    """The steps of one job. Raises TrainerFailure SpecInvalid for a pattern or a region that cannot be used."""

    def __init__(self, wish: Clean) -> None:
        try:
            self._finders = finders(wish.mask, wish.phone_regions)
        except KeyError as unknown:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"dataset.clean.phoneRegions: {unknown.args[0]} is not a supported country. Use ISO 3166-1 codes, for "
                "example DE.",
            ) from unknown
        self._masks = {f"mask[{kind}]": _mask(find, MARKS[kind]) for kind, find in self._finders.items()}
        self._steps = _text_steps(wish) | self._masks
        self.cleaned = Cleaned(steps=Counter(dict.fromkeys(self._steps, 0)))

    def clean(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows with every message cleaned. A row whose question or answer is empty afterwards is dropped and
        counted; an empty system message is left out."""
        for row in rows:
            texts = [self.text(message.content) for message in row.messages]
            self._note(row.source, [changes for _, changes in texts if changes])
            messages = tuple(
                message._replace(content=text)
                for message, (text, _) in zip(row.messages, texts, strict=True)
                if text.strip() or message.role != "system"
            )
            if all(message.content.strip() for message in messages):
                yield replace(row, messages=messages)
            else:
                self.cleaned.emptied += 1

    def text(self, text: str) -> tuple[str, Changes]:
        """A text after all steps, and what each of them changed first."""
        changes: Changes = {}
        for _ in range(ROUNDS):
            start = text
            for name, step in self._steps.items():
                before, text = text, step(text)
                if text != before:
                    changes.setdefault(name, (before, text))
            if text == start:
                break
        return text, changes

    def _note(self, source: str, changed: list[Changes]) -> None:
        """Counts one row's changes, a dictionary for each of its texts, and keeps the first few as examples."""
        cleaned = self.cleaned
        cleaned.rows += bool(changed)
        cleaned.steps.update({step for changes in changed for step in changes})
        for changes in changed:
            for step, (before, after) in changes.items():
                shown = sum(example.step == step for example in cleaned.examples)
                if shown < EXAMPLES and (step in self._masks or self._holds_nothing_masked(changes, after)):
                    cleaned.examples.append(Change(step, source, *_windows(self._hide(before), self._hide(after))))

    def _holds_nothing_masked(self, changes: Changes, after: str) -> bool:
        """Whether a text is free of what is to be masked. Of one that is not, earlier forms may hold a value that
        is not found in them, so they are not shown."""
        return not self._masks.keys() & changes and not any(any(find(after)) for find in self._finders.values())

    def _hide(self, text: str) -> str:
        for find in self._finders.values():
            text = replaced(text, find, hidden)
        return text


def _text_steps(wish: Clean) -> dict[str, Step]:
    """The steps but for masks, in the order they run, by the name of their field."""
    steps: dict[str, Step] = {}
    if wish.mojibake is Mojibake.REPAIR:
        steps["mojibake"] = ftfy.fix_encoding
    if wish.unicode is not UnicodeForm.KEEP:
        steps["unicode"] = partial(_normalised, wish.unicode.value)
    for index, pattern in enumerate(wish.remove):
        steps[f"remove[{index}]"] = partial(without, _compiled(pattern, f"dataset.clean.remove[{index}]"))
    if wish.whitespace is not Whitespace.KEEP:
        steps["whitespace"] = trimmed if wish.whitespace is Whitespace.TRIM else collapsed
    return steps


def _mask(find: Finder, mark: str) -> Step:
    return lambda text: replaced(text, find, lambda _: mark)


def _normalised(form: str, text: str) -> str:
    return text if text.isascii() else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _compiled(pattern: str, name: str) -> Any:
    """RE2's expression, whose matching time is linear in the text whatever the pattern."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{name} {pattern!r} is not a regular expression in RE2's syntax, which supports neither look-around nor "
            f"back-references ({reason}).",
        ) from error
    if compiled.search(""):
        raise TrainerFailure(
            FailureReason.SPEC_INVALID, f"{name} {pattern!r} matches empty text: write a pattern of the text to remove."
        )
    return compiled


def without(pattern: Any, text: str) -> str:
    """`text` without what `pattern` matches. A space is put where two words would be joined."""
    kept, end = [], 0
    for match in pattern.finditer(text):
        kept.append(text[end : match.start()])
        end = match.end()
    pieces = [piece for piece in (*kept, text[end:]) if piece]
    glued = pieces[:1]
    for before, after in pairwise(pieces):
        glued += (" " if _in_word(before[-1]) and _in_word(after[0]) else "", after)
    return "".join(glued)


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.combining(character) > 0


def trimmed(text: str) -> str:
    """`text` with every line end a newline, and no white space at the ends of lines and of the text."""
    return _LINE_TAILS.sub("\n", _LINE_ENDS.sub("\n", text)).strip()


def collapsed(text: str) -> str:
    """`text` trimmed, each run of white space within a line one space, and at most one empty line in a row."""
    return _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", trimmed(text)))


def _windows(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place they differ."""
    pairs = enumerate(zip(before, after, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(before), len(after)))
    return _window(before, same), _window(after, same)


def _window(text: str, place: int) -> str:
    start, end = max(0, place - AROUND), place + AROUND
    return ("…" if start else "") + _visible(text[start:end]) + ("…" if end < len(text) else "")


def _visible(text: str) -> str:
    """`text` with what cannot be seen written out."""
    return "".join(
        "⏎" if character == "\n" else character if _is_seen(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_seen(character: str) -> bool:
    return character.isprintable() and not unicodedata.combining(character)
