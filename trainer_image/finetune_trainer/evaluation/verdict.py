"""Whether tuning was worth it, in a sentence or a few: the gain, over what, how sure, at what cost, and whether
prompting would have done."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.metrics.values import LIKELIHOODS
from finetune_trainer.statistics.comparison import Comparison
from finetune_trainer.statistics.estimates import LEAST_CLUSTERS, Change
from finetune_trainer.statistics.evidence import Outcome
from finetune_trainer.statistics.measurements import Answer
from finetune_trainer.statistics.metric_rows import QUANTIZED
from finetune_trainer.training.training_progress import duration

METRIC_TITLES = {
    MetricName.LOSS: "Loss",
    MetricName.PERPLEXITY: "Perplexity",
    MetricName.EXACT_MATCH: "Exact match",
    MetricName.TOKEN_F1: "Token F1",
    MetricName.ROUGE1: "ROUGE-1",
    MetricName.ROUGE2: "ROUGE-2",
    MetricName.ROUGE_L: "ROUGE-L",
    MetricName.BLEU: "BLEU",
    MetricName.VALID_JSON: "Valid JSON",
    MetricName.FIELD_MATCH: "Field match",
    MetricName.MACRO_PRECISION: "Macro precision",
    MetricName.MACRO_RECALL: "Macro recall",
    MetricName.MACRO_F1: "Macro F1",
}


SMALL = 0.01
"""A gain of less is called small: a point of a share, a hundredth of a loss or perplexity."""
AS_WELL = 0.02
"""Prompting does as well where tuning is better by surely no more than that, two points of a share."""


@dataclass(frozen=True)
class Cost:
    """What the tuning took."""

    seconds: float
    """Of all steps."""
    tokens: int
    """Put through the model in these steps."""
    gpu_hours: float | None = None
    """Of the attempt, from its start until the tuned model was measured; None on a CPU."""
    price: str | None = None
    """Of these, where the profile knows the price per hour, as a decimal string."""

    def __str__(self) -> str:
        parts = [f"{duration(self.seconds)} on {self.tokens:,} tokens"]
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:.2g} GPU hours with its evaluation")
        if self.price is not None:
            parts.append(f"at a price of {self.price}")
        return ", ".join(parts)


def verdict(found: Comparison, cost: Cost | None, base: str = "the base model") -> str:
    """The sentences. Without `cost` nothing was trained: an adapter that was there already is judged. `base`: what the
    base model is called in it."""
    paid = f" (training took {cost})" if cost else ""
    names = {
        Baseline.BASE: base,
        Baseline.FEW_SHOT: f"prompting {base} with examples",
        QUANTIZED: "the base model in 4 bits",
    }
    baseline, subject = names[found.baseline], "tuning" if cost else "the adapter"
    if not found.evidence.rows:
        return _nothing_left(found, paid)
    if found.outcome is Outcome.UNRELATED:
        return f"{_unrelated(found)} {finding(found, baseline)}{paid}.{_left_out(found)}"
    return f"{finding(found, baseline)}{paid}: {conclusion(found, subject, baseline)}.{_left_out(found)}"


def unended(answers: Sequence[Answer], longest: int, untrained: bool) -> str:
    """A sentence, with a space before it, where every one of the tuned model's answers was cut at `longest` tokens; ""
    elsewhere. `untrained`: whether preflight found that the base model never learned to end an answer."""
    if not answers or not all(answer.truncated for answer in answers):
        return ""
    every = f" No answer of the tuned model came to an end: all {len(answers):,} were cut at {longest:,} tokens"
    if untrained:
        return (
            f"{every}, because the base model was never trained to end an answer; set method.lora.modulesToSave as "
            "status.preflight.advice says, or choose another base model."
        )
    return (
        f"{every}; raise evaluation.generation.maxNewTokens if answers are meant to be longer, or else train longer, "
        "or choose another base model."
    )


def finding(found: Comparison, baseline: str) -> str:
    """What the deciding metric did, against which baseline, and how sure that is."""
    row, rows = found.decision, found.evidence.rows
    before = row.of(found.baseline)
    on = f"{METRIC_TITLES[row.name]} on {rows:,} held-out row{'s' if rows > 1 else ''}"
    if before is None or row.tuned is None or found.change is None:
        return f"{on} cannot be taken"
    first, second = shown(row.name, before.value), shown(row.name, row.tuned.value)
    if first == second:
        moved = f"stayed at {second}"
    else:
        moved = f"{'rose' if row.tuned.value > before.value else 'fell'} from {first} to {second}"
    return f"{on} {moved} against {baseline}, a gain of {gain(row.name, found.change)}"


def gain(name: MetricName, change: Change) -> str:
    """A change with its interval."""
    scale, unit = (1, "") if name in LIKELIHOODS else (100, " points")
    value, low, high = (scale * number for number in (change.value, *change.interval))
    number = "+.3g" if name in LIKELIHOODS else "+.1f"
    return f"{value:{number}}{unit} (95% interval {low:{number}} to {high:{number}})"


def conclusion(found: Comparison, subject: str, baseline: str) -> str:
    """What follows from it."""
    if found.outcome is Outcome.BETTER and _is_small(found):
        return f"a gain that is real but small, so whether {subject} was worth it is for you to say"
    if found.outcome is Outcome.BETTER:
        return f"{subject} was worth it{_prompting(found)}"
    if found.outcome is Outcome.PROMPTING:
        return _prompting_instead(found, subject)
    if found.outcome is Outcome.LEAKED:
        return _leaked(found, subject)
    if found.outcome is Outcome.LIKELIER:
        return "the right answers became likelier, but those the model gives are no better"
    if found.outcome is Outcome.WORSE:
        return f"{subject} made the model worse, keep {baseline}"
    return _noise(found, subject)


def _nothing_left(found: Comparison, paid: str) -> str:
    rows = f"All {found.rows:,} held-out rows" if found.rows > 1 else "The only held-out row"
    return (
        f"{rows} or near-duplicates of them also occur in the training data with their answers, so nothing can be told"
        f"{paid}: name test rows that do not."
    )


def _unrelated(found: Comparison) -> str:
    chance = found.evidence.chance
    assert chance
    return (
        "The tuned model's answers fit other rows' questions as well as their own: their own fit better by "
        f"{gain(found.decision.name, chance)}. So the model has learned how answers look and not what to answer. Check "
        "that the prompt and the answer of each training row belong together; if they do, train on more rows or longer."
    )


def _leaked(found: Comparison, subject: str) -> str:
    gap, rows = found.evidence.gap, found.evidence.leaked
    assert gap
    return (
        f"nothing shows that {subject} was worth it. On the {rows:,} held-out row{'s' * (rows != 1)} that leaked the "
        f"gain is larger by {gain(found.decision.name, gap)}: their answers were learned by heart. Remove these rows "
        "from the training data, or name other test rows, and run the job again"
    )


def _noise(found: Comparison, subject: str) -> str:
    evidence = found.evidence
    if evidence.change and evidence.change.sign > 0:
        rows = f"{evidence.rows:,} row{'s' * (evidence.rows != 1)}"
        return (
            f"but {rows} cannot tell whether the answers fit their own questions better than those of other rows, so "
            f"nothing shows that {subject} was worth it: name more test rows"
        )
    unlikelier = ", while the right answers became less likely" if evidence.likelier < 0 else ""
    said = f"inside the noise{unlikelier}, so nothing shows that {subject} was worth it"
    return f"{said}. {_could_have_shown(found)}" if evidence.leaked else said


def _could_have_shown(found: Comparison) -> str:
    evidence, name = found.evidence, found.decision.name
    groups = f"{evidence.clusters:,} group{'s' * (evidence.clusters != 1)} of test rows"
    if evidence.detectable is None:
        return f"{groups} can show no gain at all: name at least {LEAST_CLUSTERS} that did not leak"
    least = f"{evidence.detectable:.3g}" if name in LIKELIHOODS else f"{100 * evidence.detectable:.1f} points"
    return f"A gain of {least} or more would likely have shown in {groups}: name more to show a smaller one"


def _left_out(found: Comparison) -> str:
    """What does not count, where rows leaked."""
    left = found.evidence.leaked
    if not left:
        return ""
    are = "s do" if left != 1 else " does"
    return (
        f" {left:,} more held-out row{are} not count, because a near-duplicate with nearly the same answer is in the "
        "training data."
    )


def _is_small(found: Comparison) -> bool:
    """Whether a gain that many rows tell from chance is one that hardly anybody would notice."""
    before = found.decision.of(found.baseline)
    if found.change is None or before is None:
        return False
    return abs(found.change.value) < SMALL * (before.value if found.decision.name in LIKELIHOODS else 1)


def _prompting_instead(found: Comparison, subject: str) -> str:
    over_base, change, prompting = found.decision.over_base, found.change, f"prompting it with {_examples(found)}"
    assert change
    if over_base is None or over_base.sign <= 0:
        return f"nothing shows that {subject} was worth it, and {prompting} is better, for no training"
    if change.sign < 0:
        return f"better than the base model, but {prompting} is better still, for no training"
    if change.interval.high <= AS_WELL:
        return f"better than the base model, but {prompting} does as well, for no training"
    rows = f"{found.evidence.rows:,} row{'s' if found.evidence.rows > 1 else ''}"
    return f"better than the base model, but {rows} cannot tell it from {prompting}, which takes no training"


def _prompting(found: Comparison) -> str:
    few_shot = found.decision.few_shot
    if few_shot is None:
        return ""
    if found.baseline == Baseline.FEW_SHOT:
        return f", and prompting with {_examples(found)} would not have done"
    return f", and prompting with {_examples(found)} ({shown(found.decision.name, few_shot.value)}) would not have done"


def _examples(found: Comparison) -> str:
    fewest, most = min(found.shots), max(found.shots)
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{count} example{'s' if most > 1 else ''}"


def shown(name: MetricName, value: float) -> str:
    """A metric's value for people."""
    return f"{value:,.3g}" if name in LIKELIHOODS else percent(value)


def percent(share: float) -> str:
    """A share as percent, with a decimal where it has one; never 0% or 100% when it is not."""
    rounded = round(100 * share, 1)
    if share < 1:
        rounded = min(rounded, 99.9)
    if share > 0:
        rounded = max(rounded, 0.1)
    return f"{rounded:g}%"
