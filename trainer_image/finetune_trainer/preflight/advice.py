"""What a specialist would say of a job before it holds a GPU: each sentence with its number and what to do about it.

Advice never stops a job. Pure functions over numbers that were collected while the data was prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt

from finetune_api.status.preflight import ADVICE_LENGTH, Advice
from finetune_trainer.preflight import row_advice
from finetune_trainer.preflight.row_advice import RowFacts

FEW_ROWS, FEW_ROWS_FOR_FULL = 50, 1000
"""Adapters: clear gains begin at 50 to 100 rows (OpenAI's fine-tuning guide). Full: 1,000 chosen rows were enough for
LIMA (Zhou et al. 2023)."""
FEW_STEPS = 20
"""The warm-up alone takes up to 10, and AdamW's average of the gradients is that long."""
SAME_ANSWER = 0.8
"""The share from which Google's course on machine learning calls a class imbalance at least moderate."""
LOST_ROWS = 0.01
"""Share of the rows that may be left out for their length without a word: more is no longer a few odd ones, and always
the longest of the data."""
MARKED_ROWS = 0.01
"""Share of the rows with another prompt format's marks from which it is no coincidence."""
HALF_INTERVAL = 0.1
"""Half of the 95% interval of a share near one half: from 96 rows on it is a tenth or less, and the default test set
has at least 100."""
COPIES = 0.1
"""Share of near copies from which a set is far from clean: of the sets Lee et al. 2022 measured, web text had 3% and
news 14%."""
LEARNED_TOKENS = 0.01
"""Share of the tokens that are learned below which nearly all of the time goes into reading prompts."""
RATE_FACTOR = 10
"""The best rate of adapters is about ten times that of full fine-tuning (Schulman et al. 2025, LoRA Without Regret):
so far off the default, it is likely meant for the other method."""
PASSES, PASSES_OF_FEW_ROWS, FEW_FOR_PASSES = 4, 15, 1000
"""Up to 4 passes, repeated rows are worth nearly as much as new ones, and far more are worth little (Muennighoff et al.
2023); small chosen sets are trained longer, LIMA's 1,000 rows 15 times."""

END_UNTRAINED = "EndOfTurnUntrained"
"""The reason that the evaluation looks for where no answer ends."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers advice is drawn from."""

    full: bool = False
    """Whether every weight is trained, not an adapter."""
    train_rows: int
    all_rows: int
    """Rows of all sides."""
    steps: int
    """Optimizer steps of the whole run."""
    max_steps: int | None = None
    global_batch_size: int = 8
    learning_rate: float
    usual_learning_rate: float
    """The default for this method and model."""
    max_sequence_length: int
    context: int | None = None
    """The model's, in tokens."""
    overlength: int = 0
    """Rows left out for their length."""
    taken_apart: int = 0
    """Conversations of which every answer became a row of its own."""
    same_answer: int = 0
    """Rows with the answer that most rows have."""
    marks: Mapping[str, int]
    """Rows of a question and its answer that carry a mark of another prompt format, by the mark."""
    tokens: int
    supervised_tokens: int
    test_rows: int
    tested_rows: int
    """Test rows the models are measured on."""
    leaked_rows: int = 0
    """Test rows whose question and answer a row to learn from holds, see `leaked_rows`."""
    leaks: tuple[str, ...] = ()
    """Where the first of them stand, and in which row."""
    near_copies: int = 0
    """Rows to learn from that are a near copy of an earlier one."""
    crowded: int = 0
    """Rows to learn from with near copies in other groups, because their own was full."""
    stops_early: bool = False
    """Whether training ends where the validation loss no longer falls."""
    passes: Mapping[str, float]
    """How often the whole run takes each row of a weighted source, by the source's field."""
    unused_patterns: tuple[str, ...] = ()
    """Fields of the patterns that matched no row."""
    untrained_end: str | None = None
    """What to say of a model that was never trained to end an answer, where the job does not train its output head."""
    rows: RowFacts = field(default_factory=RowFacts)
    """How the rows were read."""


def advise(facts: Facts) -> list[Advice]:
    """All advice for a job, the gravest first. Where nothing is trained, only of the test rows."""
    concerns = CONCERNS if facts.steps else {"TestRowsLeak": _leaks, "TestSetSmall": _small_test}
    said = ((reason, concern(facts)) for reason, concern in concerns.items())
    return [Advice(reason=reason, message=message[:ADVICE_LENGTH]) for reason, message in said if message]


def _leaks(facts: Facts) -> str | None:
    if not facts.leaked_rows:
        return None
    places = f" ({'; '.join(facts.leaks)})" if facts.leaks else ""
    return (
        f"{_of(facts.leaked_rows, facts.test_rows, 'test rows')} also occur in dataset.train with their answer, at "
        f"least nearly{places}. Scores on them are inflated, so the verdict goes by the other test rows. Remove one of "
        "each two, or name other test rows; dataset.deduplicate.near Drop removes near-duplicates."
    )


def _untrained_end(facts: Facts) -> str | None:
    return facts.untrained_end


def _marks(facts: Facts) -> str | None:
    marked = sum(facts.marks.values())
    if marked <= MARKED_ROWS * facts.train_rows:
        return None
    mark, rows = max(facts.marks.items(), key=lambda pair: pair[1])
    return (
        f"{_of(marked, facts.train_rows, 'rows')} already carry marks of a prompt format ({mark} in "
        f"{rows:,}), and the model's own format is put around them: give bare texts, or dataset.clean.remove the marks."
    )


def _few_rows(facts: Facts) -> str | None:
    wanted = FEW_ROWS_FOR_FULL if facts.full else FEW_ROWS
    if facts.train_rows >= wanted:
        return None
    other = " or use method.type LoRA," if facts.full else ""
    return (
        f"{facts.train_rows:,} rows to learn from are few: {wanted:,} is where gains begin to be seen. Add "
        f"rows,{other} or compare with the few-shot figures first."
    )


def _few_steps(facts: Facts) -> str | None:
    if facts.steps >= FEW_STEPS:
        return None
    if facts.max_steps == facts.steps:
        way = f"raise training.maxSteps ({facts.max_steps:,})"
    elif facts.global_batch_size > 1:
        way = f"lower training.globalBatchSize ({facts.global_batch_size:,}), or raise training.epochs"
    else:
        way = "raise training.epochs, or add rows"
    return (
        f"The run takes {facts.steps:,} optimizer step{'s' * (facts.steps != 1)}, and fewer than {FEW_STEPS} hardly "
        f"leave the warm-up: {way}."
    )


def _same_answer(facts: Facts) -> str | None:
    if facts.same_answer < SAME_ANSWER * facts.train_rows:
        return None
    return (
        f"{_of(facts.same_answer, facts.train_rows, 'rows')} have the same answer: a model that always gives it is "
        "right as often. Add rows with other answers, or judge by a metric that counts classes alike."
    )


def _lost_rows(facts: Facts) -> str | None:
    rows = facts.all_rows + facts.overlength
    if facts.overlength <= LOST_ROWS * rows:
        return None
    longer = facts.context is None or facts.max_sequence_length < facts.context
    way = "raise training.maxSequenceLength, or shorten them" if longer else "the model reads no more, so shorten them"
    return (
        f"{_of(facts.overlength, rows, 'rows')} are left out because they are longer than "
        f"{facts.max_sequence_length:,} tokens, and they are the longest of your data: {way}."
    )


def _small_test(facts: Facts) -> str | None:
    half = 1.96 * sqrt(0.25 / facts.tested_rows) if facts.tested_rows else 1.0
    if half <= HALF_INTERVAL:
        return None
    return (
        f"With {facts.tested_rows:,} test rows a share near one half is known to within {half:.0%} either way (95% "
        "interval), so smaller gains cannot be told from chance: raise dataset.split.test or evaluation.maxRows, or "
        "name more test rows."
    )


def _near_copies(facts: Facts) -> str | None:
    if facts.near_copies <= COPIES * facts.train_rows:
        return None
    return (
        f"{_of(facts.near_copies, facts.train_rows, 'rows')} nearly repeat an earlier one, so they count several "
        "times: set dataset.deduplicate.near to Drop to learn from the first of each."
    )


def _alike(facts: Facts) -> str | None:
    if facts.crowded <= COPIES * facts.train_rows:
        return None
    return (
        f"{_of(facts.crowded, facts.train_rows, 'rows')} look like rows on the other side of the split, because "
        "too many hang together: move a text that rows share into the system prompt, or raise "
        "dataset.deduplicate.threshold."
    )


def _learned_tokens(facts: Facts) -> str | None:
    share = facts.supervised_tokens / facts.tokens if facts.tokens else 1.0
    if share >= LEARNED_TOKENS:
        return None
    return (
        f"{share:.2%} of the tokens are learned; the rest are prompts of {facts.tokens // max(1, facts.train_rows):,} "
        "tokens in the mean, which take nearly all of the time: shorten what every prompt repeats."
    )


def _taken_apart(facts: Facts) -> str | None:
    if not facts.taken_apart:
        return None
    rows = "1 conversation is" if facts.taken_apart == 1 else f"{facts.taken_apart:,} conversations are"
    return (
        f"{rows} learned as one row for each answer, because the model's chat template writes a turn in another "
        "way once more follow: this is how the model will be asked, and it takes more tokens. A model whose template "
        "does not reads a conversation once."
    )


def _learning_rate(facts: Facts) -> str | None:
    rate, usual = facts.learning_rate, facts.usual_learning_rate
    if usual / RATE_FACTOR < rate < usual * RATE_FACTOR:
        return None
    side, end = ("above", "diverge or forget") if rate > usual else ("below", "learn little")
    return (
        f"training.learningRate {rate:g} is {max(rate / usual, usual / rate):,.0f} times {side} the usual {usual:g} "
        f"for this method and model, and the run may {end}: leave it out to take the usual."
    )


def _passes(facts: Facts) -> str | None:
    allowed = PASSES if facts.train_rows >= FEW_FOR_PASSES else PASSES_OF_FEW_ROWS
    passes = facts.steps * facts.global_batch_size / max(1, facts.train_rows)
    if facts.stops_early or passes < allowed + 1:
        return None
    return (
        f"Every row is taken {passes:.0f} times; for {facts.train_rows:,} rows more than {allowed} passes mostly teach "
        "them by heart: lower training.epochs, or set training.earlyStopping."
    )


def _repeated_source(facts: Facts) -> str | None:
    repeated = {field: passes for field, passes in facts.passes.items() if passes > PASSES}
    if not repeated:
        return None
    field, passes = max(repeated.items(), key=lambda pair: pair[1])
    more = f", and {len(repeated) - 1} more sources" if len(repeated) > 1 else ""
    return (
        f"By its weight every row of {field} is taken {passes:.1f} times{more}; over {PASSES} passes repeated rows are "
        "worth less and less: lower its weight, or add rows."
    )


def _unused_patterns(facts: Facts) -> str | None:
    if not facts.unused_patterns:
        return None
    return f"{', '.join(facts.unused_patterns)} matched no row: correct the pattern, or remove it."


CONCERNS: dict[str, Callable[[Facts], str | None]] = {
    END_UNTRAINED: _untrained_end,
    "TestRowsLeak": _leaks,
    "TurnsNotLearned": lambda facts: row_advice.not_learned(facts.rows),
    "ValuesReadAsText": lambda facts: row_advice.values_as_text(facts.rows),
    "ThoughtsLearned": lambda facts: row_advice.thoughts(facts.rows),
    "ColumnUnused": lambda facts: row_advice.unused_columns(facts.rows),
    "PromptFormatInRows": _marks,
    "SpecialTokensInText": lambda facts: row_advice.special_tokens_in_text(facts.rows),
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
"""Every concern by the reason it is told under, the gravest first."""


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({part / max(1, whole):.0%})"
