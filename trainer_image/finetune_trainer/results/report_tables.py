"""Facts of the run, as the report's sections say them: each number taken from the results as it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.quantity import gibibytes
from finetune_api.spec.dataset import RowFiles
from finetune_api.spec.method import LoraBias, Method, MethodType, Quantization
from finetune_api.spec.training import Publish, Scheduler
from finetune_trainer.results.results import Results, versions
from finetune_trainer.training.training_progress import duration

FALLS = {
    Scheduler.COSINE: "a cosine to a tenth",
    Scheduler.LINEAR: "a straight line to 0",
    Scheduler.CONSTANT: "constant",
}


@dataclass(frozen=True)
class Fact:
    """A name and what it comes to."""

    name: str
    value: str
    detail: str = ""


def training_facts(results: Results) -> list[Fact]:
    """The training in a few figures."""
    training = results.training
    models = ["base", *(["few-shot"] if results.assessment.baselines.few_shot else []), "tuned"]
    evaluating = Fact("Evaluating", duration(evaluation_seconds(results)), ", ".join(models))
    if not results.steps:
        return [evaluating]
    epochs = f"{training.epoch:.3g} epoch{'s' if training.epoch != 1 else ''}" if training.epoch else ""
    best = min(results.validation, key=lambda point: point.loss, default=None)
    kept = ", published" if results.prepared.resolved.publish is Publish.BEST else ""
    return [
        Fact("Steps", f"{training.step:,}", epochs),
        *([Fact("Lowest validation loss", f"{best.loss:.3g}", f"after step {best.step:,}{kept}")] if best else []),
        Fact("Time", duration(results.training_seconds), f"on {training.device}"),
        Fact("Throughput", f"{training.tokens_per_second or 0:,.0f}", "tokens per second"),
        Fact("Peak memory", peak_memory(results), "while training"),
        evaluating,
    ]


def peak_memory(results: Results) -> str:
    """The most memory any step took: the GPU's, or on a CPU the process's; "" where nothing was trained."""
    return gibibytes(max(step.memory for step in results.steps)) if results.steps else ""


def evaluation_seconds(results: Results) -> float:
    """Time all models took on the held-out rows."""
    few_shot = results.assessment.baselines.few_shot
    return results.base.seconds + (few_shot.seconds if few_shot else 0) + results.tuned.seconds


def data_facts(results: Results) -> list[Fact]:
    """What became of the rows."""
    data = results.prepared.preflight
    splits = data.splits
    counts = {
        "Rows read": data.rows,
        "Invalid": data.invalid,
        "Exact copies dropped": data.duplicates,
        "Near copies": data.near_duplicates,
        "Too long, dropped": data.overlength,
        "Rows learned from": splits and splits.train,
        "Rows to validate on": len(results.prepared.validation) or None,
        "Rows held out": splits and splits.test,
        "of these measured": results.evaluation.rows,
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
    # Where rows go alone, the tokens at a time are those of the longest.
    return f"{'one row' if training.packed is False else f'{tokens:,} tokens'} at a time{again}"


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
        *_sources("Rows", dataset.train, dataset.source_names("train")),
        *_sources("Rows to validate on", dataset.validation, dataset.source_names("validation")),
        *_sources("Held-out rows", dataset.test, dataset.source_names("test")),
        Fact("Output", bundle.spec.output.uri),
        Fact("Data digest", prepared.preflight.digest or ""),
        Fact("Spec digest", bundle.spec_digest),
        Fact("Software", software),
    ]


def _sources(title: str, sources: Sequence[RowFiles] | None, names: Sequence[str]) -> list[Fact]:
    return [Fact(f"{title} ({name})", source.uri) for name, source in zip(names, sources or [], strict=True)]
