"""What the report's tables and figures say, as text: each number taken from the results as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_api.job import MethodType
from finetune_api.status import Metrics
from finetune_trainer.results import Results, versions
from finetune_trainer.training_progress import duration
from finetune_trainer.verdict import Outcome, percent

TONES = {
    Outcome.BETTER: "good-news",
    Outcome.LIKELIER: "some-news",
    Outcome.WORSE: "bad-news",
    Outcome.NOISE: "no-news",
}
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Fact:
    """A name and what it comes to."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """A figure, with its interval below it. `tone`: a class of the page's style."""

    text: str
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One metric of every model, and its change."""

    name: str
    cells: Sequence[Cell]
    deciding: bool = False


@dataclass(frozen=True)
class Table:
    """The models side by side."""

    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]


def tone(results: Results) -> str:
    """The class of the page's style that goes with the verdict."""
    return TONES[results.comparison.outcome]


def results_table(results: Results) -> Table:
    """Base and tuned model by every metric."""
    evaluation = results.comparison.evaluation
    base, tuned = evaluation.base or Metrics(), evaluation.tuned or Metrics()
    limit = results.prepared.resolved.max_new_tokens
    rows = [
        _row("Exact match", base.exact_match, tuned.exact_match, percent, 100, " points", deciding=True),
        _row("Perplexity of the right answers", base.perplexity, tuned.perplexity, "{:,.4g}".format, -1),
        _row("Loss, nats per token", base.loss, tuned.loss, "{:.4f}".format, -1),
        _row(f"Answers cut off at {limit:,} tokens", base.truncated, tuned.truncated, "{:,}".format, -1),
    ]
    return Table(["Base", "Tuned", "Change"], [row for row in rows if row], _notes(results))


def training_facts(results: Results) -> list[Fact]:
    """The training in a few figures."""
    training = results.training
    epochs = f"{training.epoch:.3g} epoch{'s' if training.epoch != 1 else ''}" if training.epoch else ""
    return [
        Fact("Steps", f"{training.step:,}", epochs),
        Fact("Time", duration(results.training_seconds), f"on {training.device}"),
        Fact("Throughput", f"{training.tokens_per_second or 0:,.0f}", "tokens per second"),
        Fact(
            "Evaluating",
            duration(results.base.seconds + results.tuned.seconds),
            f"base and tuned, {len(results.held_out):,} rows each",
        ),
    ]


def data_facts(results: Results) -> list[Fact]:
    """What became of the rows."""
    data = results.prepared.preflight
    splits = data.splits
    counts = {
        "Rows read": data.rows,
        "Invalid": data.invalid,
        "Exact copies dropped": data.duplicates,
        "Too long, dropped": data.overlength,
        "Rows learned from": splits and splits.train,
        "Rows to validate on": len(results.prepared.validation) or None,
        "Rows held out": splits and splits.test,
        "Tokens per epoch": data.tokens,
        "of these learned": data.supervised_tokens,
        "Longest row allowed": results.prepared.resolved.max_sequence_length,
    }
    return [Fact(name, f"{count:,}") for name, count in counts.items() if count is not None]


def recipe(results: Results) -> list[Fact]:
    """How it was trained."""
    spec, resolved = results.bundle.spec, results.prepared.resolved
    lora, training = spec.method.lora, spec.training
    steps = f"{resolved.warmup_steps} warm-up step{'s' if resolved.warmup_steps != 1 else ''}"
    four_bit = " (nf4, double quantization)" if resolved.method is MethodType.QLORA else ""
    adapter = f"r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout:g} on {', '.join(lora.target_modules)}"
    return [
        Fact("Method", f"{resolved.method}{four_bit}: {adapter}"),
        Fact("Learning rate", f"{resolved.learning_rate:g} at its peak, after {steps}, then a cosine to a tenth"),
        Fact("Optimizer", "AdamW, no weight decay, gradients clipped at 1"),
        Fact("Batch", f"{training.global_batch_size} rows a step, {resolved.micro_batch_tokens:,} tokens at a time"),
        Fact("Seed", f"{training.seed}; split {spec.dataset.split.seed}"),
    ]


def provenance(results: Results) -> list[Fact]:
    """What it was made from and with."""
    bundle, prepared = results.bundle, results.prepared
    job, dataset = bundle.job, bundle.spec.dataset
    made_by = f"{job.namespace}/{job.name}, uid {job.uid}, attempt {results.training.attempt}" if job else "a local run"
    software = ", ".join(f"{name} {number}" for name, number in versions().items())
    licence = results.base_license.get("license")
    return [
        Fact("FineTuneJob", made_by),
        Fact(
            "Base model",
            f"{bundle.spec.model.uri}, {prepared.resolved.parameters:,} parameters"
            + (f", licence {licence}" if licence else ""),
        ),
        *(Fact("Rows", source.uri) for source in dataset.train),
        *(Fact("Held-out rows", source.uri) for source in dataset.test or []),
        Fact("Output", bundle.spec.output.uri),
        Fact("Data digest", prepared.preflight.digest or ""),
        Fact("Spec digest", bundle.spec_digest),
        Fact("Software", software),
    ]


def _row(
    name: str,
    base: float | None,
    tuned: float | None,
    shown: Callable[[float], str],
    scale: float,
    unit: str = "",
    deciding: bool = False,
) -> Row | None:
    """A metric of both models. `scale`: what a change is multiplied by for people; below zero where less is better."""
    if base is None or tuned is None:
        return None
    moved = abs(scale) * (tuned - base)
    tone = "" if moved == 0 else "good" if (moved > 0) == (scale > 0) else "bad"
    change = Cell(("±0" if moved == 0 else f"{moved:+,.3g}".replace("-", MINUS)) + unit, tone=tone)
    return Row(name, [Cell(shown(base)), Cell(shown(tuned), tone="main"), change], deciding)


def _notes(results: Results) -> list[str]:
    comparison, resolved = results.comparison, results.prepared.resolved
    gained, lost = comparison.gained, comparison.lost
    if gained or lost:
        p_value = "< 0.001" if comparison.p_value < 0.001 else f"= {comparison.p_value:.3f}"
        matches = (
            f"{gained:,} row{'s' if gained != 1 else ''} only the tuned model answers word for word, {lost:,} only the "
            f"base model: McNemar's exact test gives p {p_value}."
        )
    else:
        matches = "There is no row that only one of the two answers word for word."
    low, high = (f"{end:+.3g}".replace("-", MINUS) for end in comparison.loss_change)
    weights = (
        "Both ran over 4-bit weights: the base model is measured as it was loaded for training, not in bfloat16."
        if resolved.method is MethodType.QLORA
        else "Both ran in bfloat16."
    )
    return [
        f"{matches} The loss changed by {low} to {high} nats a token (95% interval, paired bootstrap over rows). Both "
        f"models got the same prompts and answered greedily. {weights}"
    ]
