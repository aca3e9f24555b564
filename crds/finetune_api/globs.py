"""URIs with wildcards: * and ? match within one folder, ** matches across folders, /**/ also matches one slash."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

WILDCARDS = {"/**/": "/(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
"""Each wildcard as a regular expression."""
_TOKENS = re.compile(r"(/\*\*/|\*\*|\*|\?)")


def has_wildcard(uri: str) -> bool:
    """Whether the URI may stand for several files."""
    return _TOKENS.search(uri) is not None


def beginning(glob: str) -> str:
    """What every match begins with: the part before the first wildcard."""
    return re.split(r"[*?]", glob)[0]


def expression(glob: str) -> re.Pattern[str]:
    """What the glob matches, as a regular expression for `fullmatch`."""
    return re.compile("".join(WILDCARDS.get(part, re.escape(part)) for part in _TOKENS.split(glob)))


def meets(glob: str, folder: str) -> bool:
    """Whether a match of the glob can be the folder, lie in it, or be what the folder lies in. `folder` has no slash at
    its end.

    The glob is followed along the folder's name as a non-deterministic automaton, so the time is bounded by the product
    of both lengths."""
    steps = list(_steps(glob))
    places = _with_skips(steps, {0})
    for letter in f"{folder}/":
        if letter == "/" and len(steps) in places:
            return True
        places = _with_skips(steps, _advanced(steps, places, letter))
    return bool(places)


class _Step(NamedTuple):
    """One position of a glob: a letter, or a wildcard."""

    letter: str | None
    """The only letter that fits; None for any, "" for none."""
    within: bool = False
    """Whether a slash does not fit."""
    repeats: bool = False
    """Whether any number of letters fit, none among them."""
    skips: tuple[int, ...] = ()
    """How many positions further the match may go on without a letter."""


def _steps(glob: str) -> Iterator[_Step]:
    for token in _TOKENS.split(glob):
        if token == "/**/":
            yield from (_Step("/"), _Step("", skips=(1, 3)), _Step(None, repeats=True, skips=(1,)), _Step("/"))
        elif token == "**":
            yield _Step(None, repeats=True, skips=(1,))
        elif token == "*":
            yield _Step(None, within=True, repeats=True, skips=(1,))
        elif token == "?":
            yield _Step(None, within=True)
        else:
            yield from map(_Step, token)


def _with_skips(steps: list[_Step], places: Iterable[int]) -> set[int]:
    """`places` and those reached from there without a letter."""
    found, open = set(places), list(places)
    while open:
        place = open.pop()
        further = {place + count for count in steps[place].skips} - found if place < len(steps) else set()
        found |= further
        open.extend(further)
    return found


def _advanced(steps: list[_Step], places: Iterable[int], letter: str) -> set[int]:
    """Where the glob may stand after one more letter."""
    found = set()
    for place in places:
        if place == len(steps):
            continue
        step = steps[place]
        if step.letter == letter or (step.letter is None and not (step.within and letter == "/")):
            found.add(place if step.repeats else place + 1)
    return found
