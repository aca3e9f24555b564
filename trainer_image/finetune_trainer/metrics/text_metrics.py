"""How near a written answer comes to the expected one. Each function gives numbers of one row that add up over rows.

The references know English words. Of other scripts rouge-score keeps nothing, and where no spaces stand between words a
whole sentence is one word to all of them; so other letters count as letters here, and characters of scripts without
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) as words, as in MLQA and sacrebleu's `zh`."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from sacrebleu.metrics.bleu import BLEU

ORDER = 4
"""Longest n-grams BLEU counts (Papineni et al. 2002)."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003134f])"
)


def spaced(text: str) -> str:
    """`text` with every character of a script without spaces set apart."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def squad_tokens(text: str) -> list[str]:
    """Words in SQuAD's normalisation: lower case, no ASCII punctuation, no articles (Rajpurkar et al. 2016,
    evaluate-v1.1.py)."""
    return spaced(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))).split()


def token_f1(answer: str, expected: str) -> float:
    """F1 of the words they share, 0 to 1, as SQuAD 2.0 takes it: where one has no word at all, 1 only if both have
    none."""
    written, right = squad_tokens(answer), squad_tokens(expected)
    if not written or not right:
        return float(written == right)
    return _f1((Counter(written) & Counter(right)).total(), len(written), len(right))


@lru_cache(maxsize=4096)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """Words as rouge-score takes them: runs of lower-cased letters and digits, not stemmed. It knows those of ASCII."""
    if text.isascii():
        return tuple(_NOT_ROUGE.sub(" ", text.lower()).split())
    letters = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text.lower())
    return tuple(spaced(letters).split())


def rouge_n(answer: str, expected: str, n: int) -> float:
    """F1 of the n-grams they share, 0 to 1 (Lin 2004)."""
    written, right = (_n_grams(rouge_tokens(text), n) for text in (answer, expected))
    return _f1((written & right).total(), written.total(), right.total())


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1 (Lin 2004)."""
    written, right = rouge_tokens(answer), rouge_tokens(expected)
    return _f1(common_subsequence(written, right), len(written), len(right))


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence. The bits of one integer are a row of the usual table (Hyyro 2004): a
    hundred times faster than filling it cell by cell."""
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
    """What BLEU adds up over rows, tokenized as WMT's 13a: matching n-grams of orders 1 to 4, all n-grams of orders 1
    to 4, words written, words expected."""
    score = _BLEU.sentence_score(spaced(answer), [spaced(expected)])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu(counts: Sequence[float]) -> float:
    """Corpus BLEU, 0 to 1, of counts that were added up over rows: sacrebleu's own, with its exponential smoothing."""
    *shared, written, right = (int(count) for count in counts)
    score = BLEU.compute_bleu(shared[:ORDER], shared[ORDER:], written, right, smooth_method="exp")
    return float(score.score) / 100


_BLEU = BLEU(effective_order=True)  # of a single row, where it changes no count


def _n_grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _f1(shared: int, written: int, right: int) -> float:
    return 2 * shared / (written + right) if shared else 0.0
