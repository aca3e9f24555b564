"""What the report's tables and figures say, as text: each number taken from the results as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_api.evaluation import MetricName
from finetune_api.job import LoraBias, Method, MethodType, Publish, Quantization, Scheduler
from finetune_trainer.comparison import MetricRow, Outcome
from finetune_trainer.estimates import Estimate
from finetune_trainer.results import Results, versions
from finetune_trainer.training_progress import duration
from finetune_trainer.verdict import METRIC_TITLES, gain, shown

TONES = {
    Outcome.BETTER: "good-news",
    Outcome.PROMPTING: "some-news",
    Outcome.LIKELIER: "some-news",
    Outcome.UNRELATED: "bad-news",
    Outcome.WORSE: "bad-news",
    Outcome.NOISE: "no-news",
}
FALLS = {
    Scheduler.COSINE: "a cosine to a tenth",
    Scheduler.LINEAR: "a straight line to 0",
    Scheduler.CONSTANT: "constant",
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
    """Every model by every metric."""
    found, evaluation = results.comparison, results.evaluation
    columns = ["Base", "Prompted", "Tuned", "Gain over base"] if found.shots else ["Base", "Tuned", "Gain over base"]
    rows = [_row(row, bool(found.shots), row is found.decision) for row in found.metrics.values()]
    cut = (
        [evaluation.base, evaluation.few_shot, evaluation.tuned] if found.shots else [evaluation.base, evaluation.tuned]
    )
    if found.decision.tuned and any(metrics and metrics.truncated is not None for metrics in cut):
        limit = results.prepared.resolved.max_new_tokens
        counts = [
            Cell(f"{metrics.truncated:,}" if metrics and metrics.truncated is not None else "") for metrics in cut
        ]
        rows.append(Row(f"Answers cut off at {limit:,} tokens", [*counts, Cell("")]))
    return Table(columns, rows, _notes(results))


def training_facts(results: Results) -> list[Fact]:
    """The training in a few figures."""
    training = results.training
    epochs = f"{training.epoch:.3g} epoch{'s' if training.epoch != 1 else ''}" if training.epoch else ""
    best = min(results.validation, key=lambda point: point.loss, default=None)
    kept = ", published" if results.prepared.resolved.publish is Publish.BEST else ""
    return [
        Fact("Steps", f"{training.step:,}", epochs),
        *([Fact("Lowest validation loss", f"{best.loss:.3g}", f"after step {best.step:,}{kept}")] if best else []),
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
    training = spec.training
    method = method_text(spec.method, resolved.method)
    if not resolved.total_steps:
        return [Fact("Method", method), Fact("Seed", f"split {spec.dataset.split.seed}")]
    steps = f"{resolved.warmup_steps} warm-up step{'s' if resolved.warmup_steps != 1 else ''}"
    clipped = f"clipped at {training.max_grad_norm:g}" if training.max_grad_norm else "not clipped"
    decay = f"{training.optimizer}, weight decay {training.weight_decay:g}, gradients {clipped}"
    rate = f"{resolved.learning_rate:g} at its peak, after {steps}, then {FALLS[training.scheduler]}"
    return [
        Fact("Method", f"{method}. {resolved.method_reason}" if resolved.method_reason else method),
        Fact("Learning rate", rate),
        Fact("Optimizer", decay),
        Fact("Batch", f"{training.global_batch_size} rows a step, {layout_text(results)}"),
        Fact("Seed", f"{training.seed}; split {spec.dataset.split.seed}"),
    ]


def layout_text(results: Results) -> str:
    """How steps lay in memory."""
    training = results.training
    tokens = training.micro_batch_tokens or results.prepared.resolved.micro_batch_tokens
    again = ", activations computed again in the backward pass" if training.gradient_checkpointing else ""
    return f"{tokens:,} tokens at a time{again}"


def method_text(method: Method, resolved: MethodType) -> str:
    """The method with its settings, as people name them."""
    if resolved is MethodType.FULL:
        return "Full: every weight, in fp32 with bfloat16 compute"
    if resolved is MethodType.NONE:
        return f"None: nothing was trained, {method.lora.from_} is taken as it is"
    lora, four_bit = method.lora, method.quantization or Quantization()
    double = ", double quantization" if four_bit.double_quant else ""
    settings = [
        f"{resolved}{f' ({four_bit.type}{double})' if resolved is MethodType.QLORA else ''}: r {lora.r}",
        f"alpha {lora.alpha}",
        f"dropout {lora.dropout:g} on {', '.join(lora.target_modules)}",
    ]
    switches = {"rsLoRA": lora.use_rslora, "DoRA": lora.use_dora, f"bias {lora.bias}": lora.bias is not LoraBias.NONE}
    settings += [name for name, on in switches.items() if on]
    settings += [f"{', '.join(lora.modules_to_save)} whole"] if lora.modules_to_save else []
    return ", ".join(settings) + (f"; continues {lora.from_}" if lora.from_ else "")


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


def _row(row: MetricRow, prompted: bool, deciding: bool) -> Row:
    """A metric of all models."""
    models = [row.base, row.few_shot, row.tuned] if prompted else [row.base, row.tuned]
    cells = [_cell(row.name, estimate) for estimate in models]
    cells[-1] = replace(cells[-1], tone="main")
    change = row.over_base
    if change is None:
        return Row(METRIC_TITLES[row.name], [*cells, Cell("")], deciding)
    text, interval = gain(row.name, change).removesuffix(")").split(" (")
    tone = {1: "good", -1: "bad"}.get(change.sign, "")
    return Row(METRIC_TITLES[row.name], [*cells, Cell(_minus(text), _minus(interval), tone)], deciding)


def _cell(name: MetricName, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("")
    low, high = (shown(name, end) for end in estimate.interval)
    return Cell(shown(name, estimate.value), f"{low} to {high}")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)


def _notes(results: Results) -> list[str]:
    found, resolved = results.comparison, results.prepared.resolved
    weights = (
        "All ran over 4-bit weights: the base model is measured as it was loaded for training, not in bfloat16."
        if resolved.method is MethodType.QLORA
        else "All ran in bfloat16."
    )
    return [
        f"{found.gained:,} row{'s' if found.gained != 1 else ''} only the tuned model answers word for word, "
        f"{found.lost:,} only the base model. Intervals are of 95%: Wilson's for shares of rows, else by a paired "
        f"bootstrap over {found.clusters:,} groups of rows that are no near copies of each other. A gain in colour is "
        f"beyond the noise. All models got the same prompts and answered greedily. {weights}"
    ]
