"""Measures which changed copies of test questions are found in training rows, and which rows are found without copies.

    python -m benchmarks.leaks --data FILE [--columns question answer]

`FILE` holds a JSON object a line. A tenth of the rows are tested, the others learned. *Jaccard* is the share of the
copies that are at least 0.8 alike, which the groups of the split hold.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.copies.deduplicate import SIMILAR_WORDS
from finetune_trainer.copies.leaks import leaks
from finetune_trainer.copies.near_duplicates import jaccard, shingles, words_of

Planted = Callable[[str, list[str], random.Random], str]
"""Returns a changed copy of a question, possibly with other questions around it."""


def one_word_changed(question: str, _: list[str], draw: random.Random) -> str:
    words = question.split()
    words[draw.randrange(len(words))] = "changed"
    return " ".join(words)


def two_words_changed(question: str, others: list[str], draw: random.Random) -> str:
    return one_word_changed(one_word_changed(question, others, draw), others, draw)


def between_two_others(question: str, others: list[str], draw: random.Random) -> str:
    return " ".join([draw.choice(others), question, draw.choice(others)])


def after_an_introduction(question: str, _: list[str], __: random.Random) -> str:
    return f"Write a question about sums.\nHere is one: {question}"


def sentences_swapped(question: str, _: list[str], draw: random.Random) -> str:
    sentences = re.split(r"(?<=[.?!])\s+", question)
    at = draw.randrange(max(1, len(sentences) - 1))
    sentences[at : at + 2] = reversed(sentences[at : at + 2])
    return " ".join(sentences)


PLANTED: list[Planted] = [
    one_word_changed,
    two_words_changed,
    between_two_others,
    after_an_introduction,
    sentences_swapped,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--columns", nargs=2, default=["question", "answer"])
    wish = parser.parse_args()
    draw = random.Random(0)
    rows = [json.loads(line) for line in wish.data.read_text().splitlines()]
    draw.shuffle(rows)
    pairs = [(row[wish.columns[0]], row[wish.columns[1]]) for row in rows]
    tested, learned = [asked for asked, _ in pairs[: len(pairs) // 10]], pairs[len(pairs) // 10 :]
    texts = [f"{asked}\n{answer}" for asked, answer in learned]
    start = time.process_time()
    found = int((leaks(tested, len(texts), texts.__getitem__) >= 0).sum())
    each = (time.process_time() - start) / len(texts) * 1e6
    print(f"{len(tested):,} test rows of {len(rows):,} rows. The search needs {each:.0f} microseconds per training row")
    print(f"without planted rows: {found} found\n\n| planted | found | Jaccard |\n| --- | --- | --- |")
    others = [asked for asked, _ in learned]
    for planted in PLANTED:
        copies = [(row, planted(question, others, draw)) for row, question in enumerate(tested)]
        copies = [(row, copy) for row, copy in copies if words_of(copy) != words_of(tested[row])]
        among = texts + [copy for _, copy in copies]
        where = leaks(tested, len(among), among.__getitem__)
        hits = sum(where[row] == len(texts) + number for number, (row, _) in enumerate(copies))
        alike = sum(jaccard(shingles(copy), shingles(tested[row])) >= SIMILAR_WORDS for row, copy in copies)
        name = planted.__name__.replace("_", " ")
        print(f"| {name} | {hits / len(copies):.1%} | {alike / len(copies):.0%} |", flush=True)


if __name__ == "__main__":
    main()
