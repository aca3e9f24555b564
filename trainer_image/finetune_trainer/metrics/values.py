"""Computes each metric in two steps: statistics of each row, and the value from their sums over rows.

So every metric (a mean, a corpus score or an average over labels) can be resampled by summing other rows.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_api.spec.evaluation import LIKELIHOODS as LIKELIHOODS  # re-exported for the trainer
from finetune_api.spec.evaluation import MetricName
from finetune_trainer.metrics.json_fields import field_match, valid_json
from finetune_trainer.metrics.labels import Part, label_counts, macro
from finetune_trainer.metrics.text_metrics import bleu, bleu_counts, rouge_l, rouge_n, token_f1

Numbers = NDArray[np.float64]
LOWER_IS_BETTER = LIKELIHOODS
OF_PAIRS: Mapping[MetricName, Callable[[str, str], Sequence[float]]] = {
    MetricName.EXACT_MATCH: lambda answer, expected: (answer == expected, 1),
    MetricName.TOKEN_F1: lambda answer, expected: (token_f1(answer, expected), 1),
    MetricName.ROUGE1: lambda answer, expected: (rouge_n(answer, expected, 1), 1),
    MetricName.ROUGE2: lambda answer, expected: (rouge_n(answer, expected, 2), 1),
    MetricName.ROUGE_L: lambda answer, expected: (rouge_l(answer, expected), 1),
    MetricName.BLEU: bleu_counts,
    MetricName.VALID_JSON: valid_json,
    MetricName.FIELD_MATCH: field_match,
}
"""Statistics of one row, from its answer and the expected answer. If there are two numbers, the metric is their
ratio."""
OF_LABELS: Mapping[MetricName, Part] = {
    MetricName.MACRO_PRECISION: "precision",
    MetricName.MACRO_RECALL: "recall",
    MetricName.MACRO_F1: "f1",
}


def row_statistics(name: MetricName, answers: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> Numbers:
    """Returns the statistics of each row for the metric `name`. Shape [rows, statistics]. White space around a text is
    ignored."""
    given, wanted = [text.strip() for text in answers], [text.strip() for text in expected]
    if name in OF_LABELS:
        return label_counts(given, wanted, labels)
    return np.array([OF_PAIRS[name](*pair) for pair in zip(given, wanted, strict=True)], dtype=np.float64)


def value(name: MetricName, totals: Numbers) -> Numbers:
    """Returns the value of the metric, shape [...], from summed statistics of shape [..., statistics]. The value is NaN
    if the metric applies to no row. Raises KeyError for an unknown metric."""
    if name in OF_LABELS:
        return macro(totals, OF_LABELS[name])
    if name not in OF_PAIRS and name not in LIKELIHOODS:
        raise KeyError(name)
    if name is MetricName.BLEU:
        scores = [bleu(counts.tolist()) for counts in totals.reshape(-1, totals.shape[-1])]
        return np.array(scores).reshape(totals.shape[:-1])
    above, below = totals[..., 0], totals[..., 1]
    ratio: Numbers = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return np.asarray(np.exp(ratio)) if name is MetricName.PERPLEXITY else ratio
