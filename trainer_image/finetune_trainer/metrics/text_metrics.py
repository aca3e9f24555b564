"""Metrics of the similarity of an answer and the expected answer. Each function returns numbers of one row, which are
summed over rows.

The reference implementations are made for English. rouge-score removes all letters of other scripts, and each reference
counts a sentence without spaces as one word. So here, letters of all scripts count as letters. Characters of scripts
without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) count as words, as in MLQA and in sacrebleu's `zh`."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from sacrebleu.metrics.bleu import BLEU

ORDER = 4
"""Length of the longest n-grams in BLEU (Papineni et al. 2002)."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f])"
)


def spaced(text: str) -> str:
    """Returns `text` with spaces around every character of a script without spaces."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def squad_tokens(text: str) -> list[str]:
    """Returns the words after SQuAD's normalisation: lower case, no ASCII punctuation, no articles (Rajpurkar et al.
    2016, evaluate-v1.1.py)."""
    return spaced(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))).split()


def token_f1(answer: str, expected: str) -> float:
    """Returns the F1 of the shared words, from 0 to 1, as in SQuAD 2.0. If one text has no words, the result is 1 only
    if both texts have no words."""
    written, right = squad_tokens(answer), squad_tokens(expected)
    if not written or not right:
        return float(written == right)
    return _f1((Counter(written) & Counter(right)).total(), len(written), len(right))


@lru_cache(maxsize=4096)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """Returns the words as in rouge-score: runs of lower-case letters and digits, without stemming. rouge-score uses
    only ASCII letters; this function uses all letters."""
    if text.isascii():
        return tuple(_NOT_ROUGE.sub(" ", text.lower()).split())
    letters = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text.lower())
    return tuple(spaced(letters).split())


def rouge_n(answer: str, expected: str, n: int) -> float:
    """Returns the F1 of the shared n-grams, from 0 to 1 (Lin 2004)."""
    written, right = (_n_grams(rouge_tokens(text), n) for text in (answer, expected))
    return _f1((written & right).total(), written.total(), right.total())


def rouge_l(answer: str, expected: str) -> float:
    """Returns the F1 of the longest common subsequence of words, from 0 to 1 (Lin 2004)."""
    written, right = rouge_tokens(answer), rouge_tokens(expected)
    return _f1(common_subsequence(written, right), len(written), len(right))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence. The bits of one integer represent a row of the usual table
    (Hyyro 2004). This is 100 times faster than computing each cell."""
    places: dict[str, int] = {}
    for position, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << position
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for token in second:
        matched = row & places.get(token, 0)
        row = (row + matched | row - matched) & everywhere
    return len(first) - row.bit_count()


def bleu_counts(answer: str, expected: str) -> list[int]:
    """Returns the statistics of BLEU for one row, with the tokenizer 13a of WMT: matching n-grams of orders 1 to 4, all
    n-grams of orders 1 to 4, words of the answer, words of the expected answer."""
    score = _BLEU.sentence_score(spaced(answer), [spaced(expected)])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu(counts: Sequence[float]) -> float:
    """Returns corpus BLEU by sacrebleu, from 0 to 1, with exponential smoothing. `counts`: `bleu_counts` summed over
    rows."""
    *shared, written, right = (int(count) for count in counts)
    score = BLEU.compute_bleu(shared[:ORDER], shared[ORDER:], written, right, smooth_method="exp")
    return float(score.score) / 100


_BLEU = BLEU(effective_order=True)  # used for the counts only, which this option does not change


def _n_grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _f1(shared: int, written: int, right: int) -> float:
    return 2 * shared / (written + right) if shared else 0.0
