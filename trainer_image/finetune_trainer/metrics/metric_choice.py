"""Chooses the metrics from the spec and the kind of the answers. The first metric decides the verdict."""

from collections.abc import Mapping, Sequence

from finetune_api.reasons import FailureReason
from finetune_api.spec.evaluation import LABEL_METRICS, LIKELIHOODS, Baseline, Evaluation, MetricName, RegressionSet
from finetune_trainer.metrics.answer_kind import MOST_LABELS, ROWS_PER_LABEL, AnswerKind, Answers, recognise
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.tokens.row_store import Example

OVERLAP = (MetricName.TOKEN_F1, MetricName.ROUGE1, MetricName.ROUGE2, MetricName.ROUGE_L, MetricName.BLEU)
JSON = (MetricName.FIELD_MATCH, MetricName.VALID_JSON)
FITTING: Mapping[AnswerKind, tuple[MetricName, ...]] = {
    AnswerKind.JSON: (*JSON, MetricName.EXACT_MATCH, *OVERLAP),
    AnswerKind.LABEL: (
        MetricName.EXACT_MATCH,
        MetricName.MACRO_F1,
        MetricName.MACRO_PRECISION,
        MetricName.MACRO_RECALL,
    ),
    AnswerKind.TEXT: (MetricName.TOKEN_F1, MetricName.EXACT_MATCH, *OVERLAP[1:]),
    AnswerKind.CONTINUATION: (),
}
"""The default of `evaluation.metrics` for each kind of answers."""


def choose_metrics(wish: Evaluation, answers: Answers) -> tuple[MetricName, ...]:
    """Returns the metrics, including loss and perplexity. The first metric decides the verdict.

    Raises TrainerFailure SpecInvalid when a metric does not fit the answers, or when a gate compares with few-shot
    prompts that are not measured."""
    asked = tuple(wish.metrics or FITTING[answers.kind])
    required = (gate.metric for gate in wish.gates or [])
    chosen = tuple(dict.fromkeys((*asked, *required, *LIKELIHOODS)))
    for name in chosen:
        if problem := _unfit(name, answers):
            raise TrainerFailure(
                FailureReason.SPEC_INVALID,
                f"spec.evaluation cannot use the metric {name}, because {problem}.",
                "Remove this metric from spec.evaluation.metrics and spec.evaluation.gates.",
            )
    _require_prompting(wish)
    return chosen


def _require_prompting(wish: Evaluation) -> None:
    """Raises TrainerFailure SpecInvalid when a gate compares with few-shot prompts that are not measured."""
    for number, gate in enumerate(wish.gates or []):
        if gate.min_gain_over is None or gate.min_gain_over.few_shot is None:
            continue
        if gate.metric in LIKELIHOODS:
            why = f"{gate.metric} is not measured with few-shot prompts"
            remedy = f"Set spec.evaluation.gates[{number}].minGainOver.base, or choose another metric."
        elif Baseline.FEW_SHOT not in wish.baselines:
            why = "spec.evaluation.baselines does not contain FewShot"
            remedy = "Add FewShot to spec.evaluation.baselines."
        else:
            continue
        field = f"spec.evaluation.gates[{number}].minGainOver.fewShot"
        raise TrainerFailure(FailureReason.SPEC_INVALID, f"{field} cannot be measured, because {why}.", remedy)


def require_metric(wish: RegressionSet, rows: Sequence[Example]) -> None:
    """Raises TrainerFailure SpecInvalid when the metric of a regression set does not fit its rows."""
    kind = recognise(rows).kind
    why = None
    if kind is AnswerKind.CONTINUATION and wish.metric not in LIKELIHOODS:
        why = "its rows contain text to continue and no answers"
    elif wish.metric in JSON and kind is not AnswerKind.JSON:
        why = "fewer than 90% of its answers are a JSON object or array"
    elif wish.metric in LABEL_METRICS:
        why = "the labels of a regression set are unknown"
    if why:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"spec.evaluation.regression {wish.name} cannot use the metric {wish.metric}, because {why}.",
            "Choose another metric for this regression set.",
        )


def _unfit(name: MetricName, answers: Answers) -> str | None:
    """Returns the reason why the metric does not fit the answers, or None if the metric fits."""
    if name in LIKELIHOODS:
        return None
    if answers.kind is AnswerKind.CONTINUATION:
        return "the rows contain text to continue and no answers"
    if name in JSON and answers.kind is not AnswerKind.JSON:
        return "fewer than 90% of the training answers are a JSON object or array"
    if name in LABEL_METRICS and answers.kind is not AnswerKind.LABEL:
        wanted = f"2 to {MOST_LABELS} different short answers with at least {ROWS_PER_LABEL} rows each on average"
        return f"the training answers are not labels ({wanted})"
    return None
