"""A thousand seeded pairs of an answer and an expected answer, for comparing metrics with their reference libraries."""

import random
from collections.abc import Callable, Sequence

WORDS = [
    "the",
    "a",
    "an",
    "An,",
    "cat",
    "Cat.",
    "sat",
    "on",
    "mat",
    "3.5",
    "$4",
    "don't",
    "U.S.",
    "naïve",
    "Straße",
    "猫",
]
MARKS = ["", "", "", "", ".", ",", "!", " -", "'s", "…", "\n", "  ", "&quot;", "<skipped>", "&amp;", "-", "(x)"]


def text(source: random.Random, words: Sequence[str], marks: Sequence[str]) -> str:
    """Up to 14 words, some with marks that tokenizers stumble over."""
    return " ".join(source.choice(words) + source.choice(marks) for _ in range(source.choice([0, 1, 2, 5, 9, 14])))


def pairs(count: int = 1000, seed: int = 0, kept: Callable[[str], bool] = bool) -> list[tuple[str, str]]:
    """Pairs that share most, some or none of their words. `kept`: which of the words they are made of."""
    source, from_words = random.Random(seed), [word for word in WORDS if kept(word)]
    marks = [mark for mark in MARKS if not mark or kept(mark)]
    found = []
    for _ in range(count):
        expected = text(source, from_words, marks)
        words = expected.split(" ")
        for _ in range(source.choice([0, 1, 3])):
            words.insert(source.randrange(len(words) + 1), source.choice(from_words))
        found.append(
            (
                source.choice([expected, " ".join(words), " ".join(words[::-1]), text(source, from_words, marks)]),
                expected,
            )
        )
    return found
