"""Label metrics are equal to scikit-learn in 1,000 seeded cases."""

import random

import numpy as np
import pytest

from finetune_trainer.metrics.labels import OTHER, confusion, label_counts, label_scores, macro

LABELS = ("billing", "login", "other", "shipping", "never expected")


def case(seed: int) -> tuple[list[str], list[str]]:
    """Answers, of which some are no label, and what was expected."""
    source = random.Random(seed)
    expected = [source.choice(LABELS[: source.randint(1, 4)]) for _ in range(source.choice([1, 3, 20]))]
    answers = [source.choice([right, right, *LABELS, "Billing", ""]) for right in expected]
    return answers, expected


def test_the_scores_are_scikit_learns() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    for seed in range(1000):
        answers, expected = case(seed)
        totals = label_counts(answers, expected, LABELS).sum(axis=0)
        known = sorted(set(expected))
        averaged = precision_recall_fscore_support(expected, answers, labels=known, average="macro", zero_division=0)
        assert [float(macro(totals, part)) for part in ("precision", "recall", "f1")] == pytest.approx(averaged[:3])
        if seed % 10:
            continue  # the reference takes its time
        columns = precision_recall_fscore_support(expected, answers, labels=list(LABELS), zero_division=0)
        for score, *reference in zip(label_scores(totals, LABELS), *columns, strict=True):
            assert (score.precision, score.recall, score.f1, score.expected) == pytest.approx(tuple(reference))


def test_the_confusion_table_is_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix

    for seed in range(1000):
        answers, expected = case(seed)
        named = [answer if answer in LABELS else OTHER for answer in answers]
        table = confusion(answers, expected, LABELS)
        everything = (*LABELS, OTHER)
        ours = [[table[right, given] for given in everything] for right in everything]
        assert np.array_equal(ours, confusion_matrix(expected, named, labels=everything))


def test_no_expected_label_gives_no_number() -> None:
    assert np.isnan(macro(np.zeros(6), "f1"))


def test_many_sums_are_taken_at_once() -> None:
    counts = label_counts(*case(5), LABELS)
    both = np.stack([counts.sum(axis=0), counts[:1].sum(axis=0)])
    assert macro(both, "f1").tolist() == [float(macro(totals, "f1")) for totals in both]
