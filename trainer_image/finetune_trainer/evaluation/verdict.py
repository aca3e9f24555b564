"""The verdict: whether tuning was worth it, in a few plain sentences.

The first sentence is the answer. The figures follow: the gain over the best baseline, its confidence interval, and the
cost of the training. The last sentences name test rows that do not count and answers that never end."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.spec.evaluation import Baseline, MetricName
from finetune_trainer.metrics.values import LIKELIHOODS, LOWER_IS_BETTER
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
"""A smaller gain is called small: one point of a share, or a hundredth of the baseline's loss or perplexity."""
AS_WELL = 0.02
"""Prompting works as well when the confidence interval of the gain over prompting ends at or below this value: two
points of a share."""
MORE_ROWS = "measure more test rows (spec.dataset.test or spec.dataset.split.test, and spec.evaluation.maxRows)"
TUNED = "the tuned model"


@dataclass(frozen=True)
class Cost:
    """The cost of the training."""

    seconds: float
    """Duration of all optimizer steps."""
    tokens: int
    """Tokens of the rows of these steps, prompts and answers."""
    gpu_hours: float | None = None
    """Until the tuned model was measured, with those of the earlier attempts or job whose steps this attempt has taken
    over; None on a CPU."""
    price: str | None = None
    """Price of the GPU hours as a decimal string; None if the profile named no price per hour for some of them."""

    def __str__(self) -> str:
        parts = [f"{duration(self.seconds)} on {self.tokens:,} tokens"]
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:.2g} GPU hours including the evaluation")
        if self.price is not None:
            parts.append(f"at a price of {self.price}")
        return ", ".join(parts)


def verdict(found: Comparison, cost: Cost | None, base: str = "the base model") -> str:
    """Returns the verdict. `cost`: None when nothing was trained and an existing adapter was evaluated. `base`: how the
    sentences call the base model."""
    names = {
        Baseline.BASE: base,
        Baseline.FEW_SHOT: f"{base} prompted with examples",
        QUANTIZED: "the base model in 4 bits",
    }
    baseline, subject = names[found.baseline], "tuning" if cost else "the adapter"
    sentences = [conclusion(found, subject, baseline)]
    if found.evidence.rows:
        sentences += [finding(found, baseline)]
    if cost:
        sentences += [f"Training took {cost}."]
    if found.evidence.rows and found.evidence.leaked:
        sentences += [_left_out(found)]
    return " ".join(sentences)


def unended(answers: Sequence[Answer], longest: int, untrained: bool) -> str:
    """Returns a sentence, with a space before it, if every answer of the tuned model was cut at `longest` tokens, or
    else "". `untrained`: whether preflight found that the base model was never trained to end an answer."""
    if not answers or not all(answer.truncated for answer in answers):
        return ""
    every = f" No answer of the tuned model ended: all {len(answers):,} were cut at {longest:,} tokens"
    if untrained:
        return (
            f"{every}, because the base model was never trained to end an answer. Set spec.method.lora.modulesToSave "
            "as status.preflight.advice says, or choose another base model."
        )
    return (
        f"{every}. Raise spec.evaluation.generation.maxNewTokens if answers must be longer. Otherwise train longer, or "
        "choose another base model."
    )


def finding(found: Comparison, baseline: str) -> str:
    """Returns the sentence with the deciding metric before and after tuning, the gain, and its confidence interval."""
    row, rows = found.decision, found.evidence.rows
    before = row.of(found.baseline)
    lower = " (lower is better)" if row.name in LOWER_IS_BETTER else ""
    on = f"{METRIC_TITLES[row.name]}{lower} on {_rows(rows, 'held-out row')}"
    if before is None or row.tuned is None or found.change is None:
        return f"{on} could not be measured."
    first, second = shown(row.name, before.value), shown(row.name, row.tuned.value)
    if first == second:
        moved = f"is {second} for {baseline} and for {TUNED}"
    else:
        verb = "rose" if row.tuned.value > before.value else "fell"
        moved = f"{verb} from {first} for {baseline} to {second} for {TUNED}"
    return f"{on} {moved}. The gain is {gain(row.name, found.change)}."


def gain(name: MetricName, change: Change) -> str:
    """Returns a change with its confidence interval: points for shares, plain numbers for loss and perplexity."""
    scale, unit = (1, "") if name in LIKELIHOODS else (100, " points")
    value, low, high = (scale * number for number in (change.value, *change.interval))
    number = "+.3g" if name in LIKELIHOODS else "+.1f"
    return f"{value:{number}}{unit} (95% confidence interval {low:{number}} to {high:{number}})"


def conclusion(found: Comparison, subject: str, baseline: str) -> str:
    """Returns the answer, in one to four sentences. `subject`: tuning or the adapter."""
    if not found.evidence.rows:
        return _nothing_left(found, subject)
    match found.outcome:
        case Outcome.UNRELATED:
            return _unrelated(found)
        case Outcome.BETTER if _is_small(found):
            return f"The gain is statistically significant but small. Decide whether {subject} was worth it."
        case Outcome.BETTER:
            return f"{_capital(subject)} was worth it.{_prompting(found)}"
        case Outcome.PROMPTING:
            return _prompting_instead(found, subject)
        case Outcome.LEAKED:
            return _leaked(found, subject)
        case Outcome.LIKELIER:
            return (
                f"{_capital(subject)} did not improve the answers. Only the loss fell: the right answers became more "
                "likely."
            )
        case Outcome.WORSE:
            return f"{_capital(subject)} made the model worse. Keep {baseline}."
        case Outcome.NOISE:
            return _noise(found, subject)


def _capital(subject: str) -> str:
    return subject[0].upper() + subject[1:]


def _rows(count: int, what: str = "test row") -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _too_few(count: int) -> str:
    return f"{_rows(count)} {'are' if count != 1 else 'is'} too few"


def _nothing_shows(subject: str) -> str:
    return f"Nothing shows that {subject} was worth it."


def _nothing_left(found: Comparison, subject: str) -> str:
    rows = f"all {found.rows:,} held-out rows" if found.rows > 1 else "the only held-out row"
    return (
        f"It is unknown whether {subject} was worth it: {rows}, or near-duplicates of them, also occur in the training "
        "data with their answers. Use test rows that do not occur in the training data."
    )


def _unrelated(found: Comparison) -> str:
    chance = found.evidence.chance
    assert chance
    return (
        "The tuned model's answers fit other rows' questions as well as their own: the difference is only "
        f"{gain(found.decision.name, chance)}. The model learned what answers look like, but not which answer belongs "
        "to which question. Check that the prompt and the answer of each training row belong together. If they do, "
        "train on more rows, or train longer."
    )


def _leaked(found: Comparison, subject: str) -> str:
    gap, rows = found.evidence.gap, found.evidence.leaked
    assert gap
    return (
        f"{_nothing_shows(subject)} On the {_rows(rows, 'held-out row')} that leaked, the gain is larger by "
        f"{gain(found.decision.name, gap)}: the model memorised their answers. Remove the leaked rows from the "
        "training data, or use other test rows, and run the job again."
    )


def _noise(found: Comparison, subject: str) -> str:
    evidence, said = found.evidence, _nothing_shows(subject)
    if evidence.change is None:
        return said
    if evidence.change.sign > 0:
        return (
            f"{said} {_too_few(evidence.rows)} to show whether the answers fit their own questions better than other "
            f"rows' questions. To find out, {MORE_ROWS}."
        )
    unlikelier = ", and the right answers became less likely" if evidence.likelier < 0 else ""
    said = f"{said} The change is not statistically significant{unlikelier}."
    return f"{said} {_could_have_shown(found)}" if evidence.leaked else said


def _could_have_shown(found: Comparison) -> str:
    evidence, name = found.evidence, found.decision.name
    if evidence.detectable is None:
        return (
            f"{_too_few(evidence.clusters)} to show any gain. Use at least {LEAST_CLUSTERS} test rows that are neither "
            "leaked nor near-duplicates of each other."
        )
    least = f"{evidence.detectable:.3g}" if name in LIKELIHOODS else f"{100 * evidence.detectable:.1f} points"
    return (
        f"With {_rows(evidence.clusters)} (near-duplicates count as one), a gain of {least} or more would likely be "
        f"significant. To show a smaller gain, {MORE_ROWS}."
    )


def _left_out(found: Comparison) -> str:
    left = found.evidence.leaked
    return (
        f"{left:,} more held-out row{'s are' if left != 1 else ' is'} not counted, because a near-duplicate with "
        "nearly the same answer is in the training data."
    )


def _is_small(found: Comparison) -> bool:
    """Whether a statistically significant gain is too small for most people to notice."""
    before = found.decision.of(found.baseline)
    if found.change is None or before is None:
        return False
    return abs(found.change.value) < SMALL * (before.value if found.decision.name in LIKELIHOODS else 1)


def _prompting_instead(found: Comparison, subject: str) -> str:
    over_base, change = found.decision.over_base, found.change
    prompting = f"prompting the base model with {_examples(found)}"
    assert change
    if over_base is None or over_base.sign <= 0:
        return f"{_nothing_shows(subject)} {_capital(prompting)} works better and needs no training."
    better = "The tuned model is better than the base model"
    if change.sign < 0:
        return f"{better}, but {prompting} works even better and needs no training."
    if change.interval.high <= AS_WELL:
        return f"{better}, but {prompting} works as well and needs no training."
    return (
        f"{better}. {_too_few(found.evidence.rows)} to show whether it is also better than {prompting}, which needs no "
        f"training. To find out, {MORE_ROWS}."
    )


def _prompting(found: Comparison) -> str:
    few_shot = found.decision.few_shot
    if few_shot is None:
        return ""
    value = "" if found.baseline == Baseline.FEW_SHOT else f" ({shown(found.decision.name, few_shot.value)})"
    return f" Prompting the base model with {_examples(found)} was not enough{value}."


def _examples(found: Comparison) -> str:
    fewest, most = min(found.shots), max(found.shots)
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{count} example{'s' if most > 1 else ''}"


def shown(name: MetricName, value: float) -> str:
    """Returns a metric's value as text: percent for shares, a plain number for loss and perplexity."""
    return f"{value:,.3g}" if name in LIKELIHOODS else percent(value)


def percent(share: float) -> str:
    """Returns a share as percent with at most one decimal. Only an exact 0 or 1 is shown as 0% or 100%."""
    rounded = round(100 * share, 1)
    if share < 1:
        rounded = min(rounded, 99.9)
    if share > 0:
        rounded = max(rounded, 0.1)
    return f"{rounded:g}%"
