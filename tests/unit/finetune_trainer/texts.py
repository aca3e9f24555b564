"""A thousand seeded pairs of an answer and an expected answer, for comparing metrics with their reference libraries."""

import random

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


def text(source: random.Random) -> str:
    """Up to 14 words, some with marks that tokenizers stumble over."""
    return " ".join(source.choice(WORDS) + source.choice(MARKS) for _ in range(source.choice([0, 1, 2, 5, 9, 14])))


def pairs(count: int = 1000, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs that share most, some or none of their words."""
    source = random.Random(seed)
    found = []
    for _ in range(count):
        expected = text(source)
        words = expected.split(" ")
        for _ in range(source.choice([0, 1, 3])):
            words.insert(source.randrange(len(words) + 1), source.choice(WORDS))
        found.append((source.choice([expected, " ".join(words), " ".join(words[::-1]), text(source)]), expected))
    return found
