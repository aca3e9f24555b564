"""Advice on a job before it uses a GPU: each message gives the number that was found and the remedy.

Advice never stops a job. Pure functions over numbers that preflight collects while it prepares the data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt

from finetune_api.status.preflight import ADVICE_LENGTH, Advice
from finetune_trainer.preflight.advice import row_concerns
from finetune_trainer.preflight.advice.row_concerns import RowFacts

FEW_ROWS, FEW_ROWS_FOR_FULL = 50, 1000
"""Training rows below which gains are unlikely. Adapters: clear gains begin at 50 to 100 rows (OpenAI's fine-tuning
guide). Full: 1,000 selected rows were enough for LIMA (Zhou et al. 2023)."""
FEW_STEPS = 20
"""AdamW averages the gradients over about 10 steps, and the warm-up can use up to 10 steps."""
SAME_ANSWER = 0.8
"""From this share of one class on, Google's course on machine learning calls a class imbalance at least moderate."""
LOST_ROWS = 0.01
"""Share of the rows that may be left out because they are too long before advice is given. A larger share is more than
a few exceptions, and the rows left out are always the longest."""
MARKED_ROWS = 0.01
"""Share of the rows with marks of another prompt format. A larger share is not a coincidence."""
HALF_INTERVAL = 0.1
"""Half the width of the 95% confidence interval of a share near 50%. From 97 rows on it is less than 0.1. The default
test set has at least 100 rows."""
COPIES = 0.1
"""Share of near-duplicates above which advice is given. Lee et al. 2022 measured 3% in web text and 14% in news."""
LEARNED_TOKENS = 0.01
"""Share of the tokens that are trained on. Below this share, nearly all training time is spent on prompts."""
RATE_FACTOR = 10
"""The best learning rate of adapters is about 10 times that of full fine-tuning (Schulman et al. 2025, LoRA Without
Regret). A learning rate this far from the default was probably chosen for the other method."""
PASSES, PASSES_OF_FEW_ROWS, FEW_FOR_PASSES = 4, 15, 1000
"""Up to 4 epochs, repeated rows help nearly as much as new rows. Many more epochs help little (Muennighoff et al.
2023). Small selected data sets are trained for more epochs: LIMA for 15 epochs on 1,000 rows."""

END_UNTRAINED = "EndOfTurnUntrained"
"""Reason of the advice that the evaluation looks up when no answer of the tuned model ends."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers that the advice depends on."""

    full: bool = False
    """Whether every weight is trained instead of an adapter."""
    train_rows: int
    all_rows: int
    """Training, validation and test rows."""
    steps: int
    """Optimizer steps of the whole run."""
    max_steps: int | None = None
    global_batch_size: int = 8
    learning_rate: float
    usual_learning_rate: float
    """The default learning rate for this method and model."""
    max_sequence_length: int
    context: int | None = None
    """Context length of the model in tokens."""
    overlength: int = 0
    """Rows that were left out because they are too long."""
    taken_apart: int = 0
    """Conversations that were split into one row for each answer."""
    same_answer: int = 0
    """Training rows with the most frequent answer."""
    marks: Mapping[str, int]
    """Training rows with a question and an answer that contain a mark of another prompt format, by mark."""
    tokens: int
    supervised_tokens: int
    test_rows: int
    tested_rows: int
    """Test rows that the models are evaluated on."""
    leaked_rows: int = 0
    """Test rows whose question and answer also occur in a training row, see `leaked_rows`."""
    leaks: tuple[str, ...] = ()
    """The first leaked test rows, each with the training row that contains it."""
    near_copies: int = 0
    """Training rows that are a near-duplicate of an earlier row."""
    crowded: int = 0
    """Training rows with near-duplicates in other groups, because their own group had reached its limit."""
    stops_early: bool = False
    """Whether training stops when the validation loss no longer falls."""
    passes: Mapping[str, float]
    """How often the whole run uses each row of a weighted source, by the field of the source."""
    unused_patterns: tuple[str, ...] = ()
    """Fields of the patterns that match no row."""
    untrained_end: str | None = None
    """The message about a model that was never trained to end an answer. None if the model is not affected."""
    rows: RowFacts = field(default_factory=RowFacts)
    """How the columns of the rows were read."""


def advise(facts: Facts) -> list[Advice]:
    """Returns all advice for a job, the most serious first. Without training, only the test rows are checked."""
    concerns = CONCERNS if facts.steps else {"TestRowsLeak": _leaks, "TestSetSmall": _small_test}
    said = ((reason, concern(facts)) for reason, concern in concerns.items())
    return [Advice(reason=reason, message=message[:ADVICE_LENGTH]) for reason, message in said if message]


def _leaks(facts: Facts) -> str | None:
    if not facts.leaked_rows:
        return None
    places = f" ({'; '.join(facts.leaks)})" if facts.leaks else ""
    return (
        f"{_of(facts.leaked_rows, facts.test_rows, 'test rows')} also occur in spec.dataset.train with the same or "
        f"nearly the same answer{places}. Scores on these rows are inflated, so the verdict uses only the other test "
        "rows. Remove each of these rows from spec.dataset.train or from the test rows. Or set "
        "spec.dataset.deduplicate.near to Drop, which removes near-duplicates."
    )


def _marks(facts: Facts) -> str | None:
    marked = sum(facts.marks.values())
    if marked <= MARKED_ROWS * facts.train_rows:
        return None
    mark, rows = max(facts.marks.items(), key=lambda pair: pair[1])
    return (
        f"{_training_rows(marked, facts)} contain marks of a prompt format ({mark} in {rows:,} rows). The model's own "
        "prompt format is added around each row, so the model would see two formats. Remove the marks from the file or "
        "with spec.dataset.clean.remove."
    )


def _few_rows(facts: Facts) -> str | None:
    wanted = FEW_ROWS_FOR_FULL if facts.full else FEW_ROWS
    if facts.train_rows >= wanted:
        return None
    other = "set spec.method.type to LoRA, " if facts.full else ""
    return (
        f"The number of training rows is only {facts.train_rows:,}. Gains usually begin at {wanted:,} rows. Add rows, "
        f"{other}or first compare with the few-shot scores."
    )


def _few_steps(facts: Facts) -> str | None:
    if facts.steps >= FEW_STEPS:
        return None
    if facts.max_steps == facts.steps:
        way = f"Raise spec.training.maxSteps ({facts.max_steps:,})"
    elif facts.global_batch_size > 1:
        way = f"Lower spec.training.globalBatchSize ({facts.global_batch_size:,}), or raise spec.training.epochs"
    else:
        way = "Raise spec.training.epochs, or add rows"
    return (
        f"The run has only {facts.steps:,} optimizer step{'s' * (facts.steps != 1)}. Fewer than {FEW_STEPS} steps "
        f"usually change the model little. {way}."
    )


def _same_answer(facts: Facts) -> str | None:
    if facts.same_answer < SAME_ANSWER * facts.train_rows:
        return None
    return (
        f"{_training_rows(facts.same_answer, facts)} have the same answer. A model that always gives this answer is "
        "correct equally often. Add rows with other answers, or evaluate with a metric that gives each class the same "
        "weight, such as MacroF1."
    )


def _lost_rows(facts: Facts) -> str | None:
    rows = facts.all_rows + facts.overlength
    if facts.overlength <= LOST_ROWS * rows:
        return None
    longer = facts.context is None or facts.max_sequence_length < facts.context
    limit = f"{facts.max_sequence_length:,} tokens"
    context = f"The model's context length is also {limit}, so shorten the rows."
    way = "Raise spec.training.maxSequenceLength, or shorten the rows." if longer else context
    return f"{_of(facts.overlength, rows, 'rows')} are left out because they are longer than {limit}. {way}"


def _small_test(facts: Facts) -> str | None:
    half = 1.96 * sqrt(0.25 / facts.tested_rows) if facts.tested_rows else 1.0
    if half <= HALF_INTERVAL:
        return None
    rows = f"{facts.tested_rows:,} test row{'s' * (facts.tested_rows != 1)}"
    return (
        f"The models are evaluated on only {rows}. The 95% confidence interval of a score near 50% is then plus or "
        f"minus {half * 100:.0f} percentage points, so smaller gains are not statistically significant. Raise "
        "spec.dataset.split.test or spec.evaluation.maxRows, or add files to spec.dataset.test."
    )


def _near_copies(facts: Facts) -> str | None:
    if facts.near_copies <= COPIES * facts.train_rows:
        return None
    return (
        f"{_training_rows(facts.near_copies, facts)} are near-duplicates of an earlier row, so the model sees their "
        "content several times. Set spec.dataset.deduplicate.near to Drop to train on only the first row of each group."
    )


def _alike(facts: Facts) -> str | None:
    if facts.crowded <= COPIES * facts.train_rows:
        return None
    return (
        f"{_training_rows(facts.crowded, facts)} can have near-duplicates among the test or validation rows, because "
        "their group of near-duplicates was larger than the limit. Scores on such rows are inflated. Move text that "
        "many rows share into the system prompt, or raise spec.dataset.deduplicate.threshold."
    )


def _learned_tokens(facts: Facts) -> str | None:
    share = facts.supervised_tokens / facts.tokens if facts.tokens else 1.0
    if share >= LEARNED_TOKENS:
        return None
    return (
        f"Only {share:.2%} of the tokens are trained on. The other tokens are prompts and need nearly all of the "
        f"training time. A row has {facts.tokens // max(1, facts.train_rows):,} tokens on average. "
        "Shorten the text that every prompt repeats."
    )


def _taken_apart(facts: Facts) -> str | None:
    if not facts.taken_apart:
        return None
    rows = "1 conversation is" if facts.taken_apart == 1 else f"{facts.taken_apart:,} conversations are"
    return (
        f"{rows} split into one training row for each answer, because the model's chat template writes a turn "
        "differently when more turns follow. Each row then has the form that the served model will see. The split "
        "needs more tokens. To avoid the split, use a model whose chat template always writes a turn in the same way."
    )


def _learning_rate(facts: Facts) -> str | None:
    rate, usual = facts.learning_rate, facts.usual_learning_rate
    if usual / RATE_FACTOR < rate < usual * RATE_FACTOR:
        return None
    side, risk = ("above", "diverge or forget earlier skills") if rate > usual else ("below", "learn little")
    return (
        f"spec.training.learningRate {rate:g} is {max(rate / usual, usual / rate):,.0f} times {side} the default "
        f"{usual:g} for this method and model. The run may {risk}. Remove spec.training.learningRate to use the "
        "default."
    )


def _passes(facts: Facts) -> str | None:
    allowed = PASSES if facts.train_rows >= FEW_FOR_PASSES else PASSES_OF_FEW_ROWS
    passes = facts.steps * facts.global_batch_size / max(1, facts.train_rows)
    if facts.stops_early or passes < allowed + 1:
        return None
    return (
        f"The run uses each training row {passes:.0f} times. With {facts.train_rows:,} rows, more than {allowed} "
        "epochs mostly make the model memorise the rows. Lower spec.training.epochs, or set "
        "spec.training.earlyStopping."
    )


def _repeated_source(facts: Facts) -> str | None:
    repeated = {field: passes for field, passes in facts.passes.items() if passes > PASSES}
    if not repeated:
        return None
    field, passes = max(repeated.items(), key=lambda pair: pair[1])
    more = f" Other sources with such a weight: {len(repeated) - 1}." if len(repeated) > 1 else ""
    return (
        f"Because of its weight, the run uses each row of {field} {passes:.1f} times.{more} After {PASSES} uses, "
        f"repeated rows help less and less. Lower {field}.weight, or add rows to this source."
    )


def _unused_patterns(facts: Facts) -> str | None:
    if not facts.unused_patterns:
        return None
    match = "matches" if len(facts.unused_patterns) == 1 else "match"
    return f"{', '.join(facts.unused_patterns)} {match} no row. Correct or remove the pattern."


CONCERNS: dict[str, Callable[[Facts], str | None]] = {
    END_UNTRAINED: lambda facts: facts.untrained_end,
    "TestRowsLeak": _leaks,
    "TurnsNotLearned": lambda facts: row_concerns.not_learned(facts.rows),
    "ValuesReadAsText": lambda facts: row_concerns.values_as_text(facts.rows),
    "ThoughtsLearned": lambda facts: row_concerns.thoughts(facts.rows),
    "ColumnUnused": lambda facts: row_concerns.unused_columns(facts.rows),
    "PromptFormatInRows": _marks,
    "SpecialTokensInText": lambda facts: row_concerns.special_tokens_in_text(facts.rows),
    "FewRows": _few_rows,
    "FewSteps": _few_steps,
    "OneAnswerRepeated": _same_answer,
    "RowsLeftOut": _lost_rows,
    "TestSetSmall": _small_test,
    "NearCopies": _near_copies,
    "RowsAlike": _alike,
    "FewTokensLearned": _learned_tokens,
    "ConversationsTakenApart": _taken_apart,
    "LearningRateUnusual": _learning_rate,
    "ManyEpochs": _passes,
    "SourceRepeated": _repeated_source,
    "PatternUnused": _unused_patterns,
}
"""The function that writes the advice of each reason, the most serious reason first."""


def _training_rows(part: int, facts: Facts) -> str:
    return _of(part, facts.train_rows, "training rows")


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({part / max(1, whole):.0%})"
