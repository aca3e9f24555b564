"""Which metrics are taken, from what the spec asks for and what the answers are. The first one decides the verdict."""

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
"""What is taken where `evaluation.metrics` is not set."""


def choose_metrics(wish: Evaluation, answers: Answers) -> tuple[MetricName, ...]:
    """The metrics to take, the deciding one first, the loss and the perplexity among them.

    Raises TrainerFailure SpecInvalid where one is asked for that these answers cannot have, or a gain over prompting
    that will not be measured."""
    asked = tuple(wish.metrics or FITTING[answers.kind])
    required = (gate.metric for gate in wish.gates or [])
    chosen = tuple(dict.fromkeys((*asked, *required, *LIKELIHOODS)))
    for name in chosen:
        if problem := _unfit(name, answers):
            raise TrainerFailure(
                FailureReason.SPEC_INVALID, f"evaluation cannot take the metric {name}: {problem}. Remove it."
            )
    _require_prompting(wish)
    return chosen


def _require_prompting(wish: Evaluation) -> None:
    """Raises TrainerFailure SpecInvalid where a gate wants a gain over prompting that is not measured."""
    for number, gate in enumerate(wish.gates or []):
        if gate.min_gain_over is None or gate.min_gain_over.few_shot is None:
            continue
        if gate.metric in LIKELIHOODS:
            way = f"{gate.metric} is not measured of prompting: set base, or choose another metric"
        elif Baseline.FEW_SHOT not in wish.baselines:
            way = "FewShot is not in evaluation.baselines: add it"
        else:
            continue
        field = f"evaluation.gates[{number}].minGainOver.fewShot"
        raise TrainerFailure(FailureReason.SPEC_INVALID, f"{field} cannot be measured, because {way}.")


def require_metric(wish: RegressionSet, rows: Sequence[Example]) -> None:
    """Raises TrainerFailure SpecInvalid where the rows of a regression set cannot have the metric it names."""
    kind = recognise(rows).kind
    why = None
    if kind is AnswerKind.CONTINUATION and wish.metric not in LIKELIHOODS:
        why = "its rows ask nothing: they are text to continue"
    elif wish.metric in JSON and kind is not AnswerKind.JSON:
        why = "its rows are not JSON, or not nine of ten"
    elif wish.metric in LABEL_METRICS:
        why = "the labels of a regression set are not known"
    if why:
        raise TrainerFailure(
            FailureReason.SPEC_INVALID,
            f"evaluation.regression {wish.name} cannot take the metric {wish.metric}: {why}. Choose another metric.",
        )


def _unfit(name: MetricName, answers: Answers) -> str | None:
    """Why answers of this kind cannot have that metric."""
    if name in LIKELIHOODS:
        return None
    if answers.kind is AnswerKind.CONTINUATION:
        return "the rows hold text to continue, no answers"
    if name in JSON and answers.kind is not AnswerKind.JSON:
        return "fewer than nine of ten training answers are a JSON object or array"
    if name in LABEL_METRICS and answers.kind is not AnswerKind.LABEL:
        wanted = f"2 to {MOST_LABELS} different short ones, {ROWS_PER_LABEL} rows or more to each"
        return f"the training answers are no labels, which are {wanted}"
    return None
