"""Each text metric is equal to its reference implementation for 1,000 seeded pairs."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from finetune_trainer.metrics.text_metrics import bleu, bleu_counts, common_subsequence, rouge_l, rouge_n, token_f1
from tests.unit.finetune_trainer.answer_pairs import pairs

PAIRS = pairs(kept=lambda word: word != "猫")
"""Without what has no spaces between its words, of which the references make one word or none."""


def test_rouge_is_that_of_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    for answer, expected in pairs(kept=str.isascii):
        score = scorer.score(expected, answer)
        assert rouge_n(answer, expected, 1) == pytest.approx(score["rouge1"].fmeasure), (answer, expected)
        assert rouge_n(answer, expected, 2) == pytest.approx(score["rouge2"].fmeasure), (answer, expected)
        assert rouge_l(answer, expected) == pytest.approx(score["rougeL"].fmeasure), (answer, expected)


@pytest.mark.parametrize("rows", [1, 2, 10, 300, 1000])
def test_bleu_is_sacrebleus_corpus_score(rows: int) -> None:
    for start in range(0, 1000, rows) if rows > 1 else range(50):
        corpus = PAIRS[start : start + rows]
        expected = BLEU().corpus_score([answer for answer, _ in corpus], [[right for _, right in corpus]])
        counts = [bleu_counts(*pair) for pair in corpus]
        assert bleu([sum(column) for column in zip(*counts, strict=True)]) == pytest.approx(expected.score / 100)


def squad_f1(prediction: str, truth: str) -> float:
    """compute_f1 of SQuAD 2.0's evaluation script, as published."""

    def tokens(text: str) -> list[str]:
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split()).split()

    gold, predicted = tokens(truth), tokens(prediction)
    same = sum((Counter(gold) & Counter(predicted)).values())
    if len(gold) == 0 or len(predicted) == 0:
        return float(gold == predicted)
    if same == 0:
        return 0
    precision, recall = same / len(predicted), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def test_token_f1_is_squads() -> None:
    for answer, expected in PAIRS:
        assert token_f1(answer, expected) == pytest.approx(squad_f1(answer, expected)), (answer, expected)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_table(first: list[str], second: list[str]) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(first, second) == table[-1][-1]


@pytest.mark.parametrize(
    ("right", "near"),
    [
        ("Перезагрузите роутер и подождите минуту.", "Перезагрузите роутер и подождите час."),
        ("请重新启动路由器并等待一分钟。", "请重新启动路由器并等待一小时。"),
        ("ルーターを再起動してください。", "ルーターを再起動しました。"),
        ("कृपया राउटर को फिर से शुरू करें।", "कृपया राउटर को बंद करें।"),
        ("กรุณารีสตาร์ทเราเตอร์", "กรุณาปิดเราเตอร์"),
        ("أعد تشغيل جهاز التوجيه وانتظر دقيقة", "أعد تشغيل جهاز التوجيه وانتظر ساعة"),
    ],
)
def test_different_texts_of_any_script_are_not_grouped(right: str, near: str) -> None:
    for metric in (token_f1, lambda *texts: rouge_n(*texts, 1), rouge_l, lambda *texts: bleu(bleu_counts(*texts))):
        assert metric(right, right) == pytest.approx(1)
        assert 0 < metric(near, right) < 1
        assert metric("OK", right) < 0.1


def test_word_for_word_is_one_and_nothing_shared_is_none() -> None:
    for metric in (token_f1, rouge_l):
        assert metric("Reset the router, then wait.", "Reset the router, then wait.") == 1
        assert metric("no idea", "Reset the router, then wait.") == 0
