"""Applies the steps of `dataset.clean` to every message of every row, and counts them with examples for the report."""

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
"""Number of characters shown before and after a change."""
ROUNDS = 5
"""Most rounds of the steps over one text. Rounds are repeated until nothing changes, because the result of one step can
require another step, and cleaning a clean text must change nothing. Two rounds are nearly always enough."""

Step = Callable[[str], str]
Changes = dict[str, tuple[str, str]]
"""The text before and after each step that changed it, by the name of the step."""

_LINE_ENDS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The look-behinds keep the run time linear: a match can only start at the first space of a run.
_LINE_TAILS = re.compile(r"(?<![^\S\n])[^\S\n]++\n")
_SPACES = re.compile(r"(?<![^\S\n])[^\S\n]++")
_EMPTY_LINES = re.compile(r"\n{3,}")


class Cleaner:
    """Cleans the rows of one job. Raises TrainerFailure SpecInvalid for a pattern or a region that is not valid."""

    def __init__(self, wish: Clean) -> None:
        try:
            self._finders = finders(wish.mask, wish.phone_regions)
        except KeyError as unknown:
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"spec.dataset.clean.phoneRegions: {unknown.args[0]} is not a supported country.",
                "Use ISO 3166-1 codes, for example DE.",
            ) from unknown
        self._masks = {f"mask[{kind}]": _mask(find, MARKS[kind]) for kind, find in self._finders.items()}
        self._steps = _text_steps(wish) | self._masks
        self.cleaned = Cleaned(steps=Counter(dict.fromkeys(self._steps, 0)))

    def clean(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yields the rows with every message cleaned. Drops and counts a row whose question or answer is empty after
        cleaning. Removes an empty system message."""
        for row in rows:
            texts = [self.text(message.content) for message in row.messages]
            self._note(row.place, [changes for _, changes in texts if changes])
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
        """Returns the text after all steps, and the first change of each step."""
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

    def _note(self, place: str, changed: list[Changes]) -> None:
        """Counts the changes of one row and keeps the first few as examples. `changed` has one dictionary per text."""
        cleaned = self.cleaned
        cleaned.rows += bool(changed)
        cleaned.steps.update({step for changes in changed for step in changes})
        for changes in changed:
            for step, (before, after) in changes.items():
                shown = sum(example.step == step for example in cleaned.examples)
                if shown < EXAMPLES and (step in self._masks or self._holds_nothing_masked(changes, after)):
                    cleaned.examples.append(Change(step, place, *_windows(self._hide(before), self._hide(after))))

    def _holds_nothing_masked(self, changes: Changes, after: str) -> bool:
        """Returns whether a text contains no value to mask. If it does, its earlier forms are not shown: they may
        contain the value in a form that the search does not find."""
        return not self._masks.keys() & changes and not any(any(find(after)) for find in self._finders.values())

    def _hide(self, text: str) -> str:
        for find in self._finders.values():
            text = replaced(text, find, hidden)
        return text


def _text_steps(wish: Clean) -> dict[str, Step]:
    """Returns the steps except masking, by the name of their field, in the order in which they run."""
    steps: dict[str, Step] = {}
    if wish.mojibake is Mojibake.REPAIR:
        steps["mojibake"] = ftfy.fix_encoding
    if wish.unicode is not UnicodeForm.KEEP:
        steps["unicode"] = partial(_normalised, wish.unicode.value)
    for index, pattern in enumerate(wish.remove):
        steps[f"remove[{index}]"] = partial(without, _compiled(pattern, f"spec.dataset.clean.remove[{index}]"))
    if wish.whitespace is not Whitespace.KEEP:
        steps["whitespace"] = trimmed if wish.whitespace is Whitespace.TRIM else collapsed
    return steps


def _mask(find: Finder, mark: str) -> Step:
    return lambda text: replaced(text, find, lambda _: mark)


def _normalised(form: str, text: str) -> str:
    return text if text.isascii() else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _compiled(pattern: str, name: str) -> Any:
    """Compiles a pattern with RE2, whose run time is linear in the length of the text for every pattern. Raises
    TrainerFailure SpecInvalid for a pattern that is not valid or that matches empty text."""
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{name} {pattern!r} is not a regular expression in RE2's syntax ({reason}).",
            "Correct the pattern. RE2 supports neither look-around nor back-references.",
        ) from error
    if compiled.search(""):
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"{name} {pattern!r} matches empty text.",
            "Write a pattern of the text to remove.",
        )
    return compiled


def without(pattern: Any, text: str) -> str:
    """Removes what `pattern` matches from `text`. Inserts a space where two words would be joined."""
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
    """Replaces every line end by a newline, and removes white space at the ends of the lines and of the text."""
    return _LINE_TAILS.sub("\n", _LINE_ENDS.sub("\n", text)).strip()


def collapsed(text: str) -> str:
    """Trims `text`, replaces white space inside a line by one space, and keeps at most one empty line in a row."""
    return _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", trimmed(text)))


def _windows(before: str, after: str) -> tuple[str, str]:
    """Returns both texts cut to the surroundings of their first difference."""
    pairs = enumerate(zip(before, after, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(before), len(after)))
    return _window(before, same), _window(after, same)


def _window(text: str, place: int) -> str:
    start, end = max(0, place - AROUND), place + AROUND
    return ("…" if start else "") + _visible(text[start:end]) + ("…" if end < len(text) else "")


def _visible(text: str) -> str:
    """Replaces invisible characters by visible escapes."""
    return "".join(
        "⏎" if character == "\n" else character if _is_seen(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_seen(character: str) -> bool:
    return character.isprintable() and not unicodedata.combining(character)
