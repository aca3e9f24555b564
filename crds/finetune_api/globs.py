"""URIs with wildcards: * and ? match within one folder, ** matches across folders, /**/ also matches one slash."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

WILDCARDS = {"/**/": "/(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
"""Each wildcard as a regular expression."""
_TOKENS = re.compile(r"(/\*\*/|\*\*|\*|\?)")


def has_wildcard(uri: str) -> bool:
    """Whether the URI contains a wildcard."""
    return _TOKENS.search(uri) is not None


def beginning(glob: str) -> str:
    """Return the common beginning of all matches: the part before the first wildcard."""
    return re.split(r"[*?]", glob)[0]


def expression(glob: str) -> re.Pattern[str]:
    """Return the glob as a regular expression for `fullmatch`."""
    return re.compile("".join(WILDCARDS.get(part, re.escape(part)) for part in _TOKENS.split(glob)))


def any_matches(globs: Iterable[str], text: str) -> bool:
    """Whether one of the globs matches the whole text."""
    return any(expression(glob).fullmatch(text) for glob in globs)


def meets(glob: str, folder: str) -> bool:
    """Whether a match of the glob can be the folder, be inside the folder, or contain the folder.

    `folder` has no slash at its end. The glob runs over the folder's name as a non-deterministic automaton, so the time
    is at most proportional to the product of both lengths."""
    steps = list(_steps(glob))
    places = _with_skips(steps, {0})
    for letter in f"{folder}/":
        if letter == "/" and len(steps) in places:
            return True
        places = _with_skips(steps, _advanced(steps, places, letter))
    return bool(places)


def remainder(glob: str, folder: str) -> frozenset[int]:
    """Return what is left of the glob inside the folder, as the places of its automaton; empty if no match is inside.

    `folder` has no slash at its end. Two folders with equal remainders have the same matches inside them."""
    steps = list(_steps(glob))
    places = _with_skips(steps, {0})
    for letter in f"{folder}/":
        places = _with_skips(steps, _advanced(steps, places, letter))
    return frozenset(places - {len(steps)})


class _Step(NamedTuple):
    """One position of a glob: a letter, or a wildcard."""

    letter: str | None
    """The only letter that matches; None for any letter, "" for no letter."""
    within: bool = False
    """Whether a slash does not match."""
    repeats: bool = False
    """Whether any number of letters match, including zero."""
    skips: tuple[int, ...] = ()
    """Distances to later positions that can be reached without a letter."""


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
    """Return `places` and all places that can be reached from them without a letter."""
    found, open = set(places), list(places)
    while open:
        place = open.pop()
        further = {place + count for count in steps[place].skips} - found if place < len(steps) else set()
        found |= further
        open.extend(further)
    return found


def _advanced(steps: list[_Step], places: Iterable[int], letter: str) -> set[int]:
    """Return the possible places after one more letter."""
    found = set()
    for place in places:
        if place == len(steps):
            continue
        step = steps[place]
        if step.letter == letter or (step.letter is None and not (step.within and letter == "/")):
            found.add(place if step.repeats else place + 1)
    return found
