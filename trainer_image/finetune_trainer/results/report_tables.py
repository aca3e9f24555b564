"""Lists of facts for the report's sections. Every number is a number of the results."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.quantity import gibibytes
from finetune_api.spec.dataset import RowFiles
from finetune_api.spec.method import LoraBias, Method, MethodType, Quantization
from finetune_api.spec.training import Publish, Scheduler
from finetune_api.status.job import Training
from finetune_trainer.results.results import Results, versions
from finetune_trainer.training.training_progress import duration

FALLS = {
    Scheduler.COSINE: "cosine decay to a tenth",
    Scheduler.LINEAR: "linear decay to 0",
    Scheduler.CONSTANT: "constant",
}


@dataclass(frozen=True)
class Fact:
    """A named value, with an optional detail."""

    name: str
    value: str
    detail: str = ""


def training_facts(results: Results) -> list[Fact]:
    """Returns the key figures of the training and the evaluation."""
    training = results.training
    models = ["base", *(["few-shot"] if results.assessment.baselines.few_shot else []), "tuned"]
    evaluating = Fact("Evaluation time", duration(evaluation_seconds(results)), ", ".join(models))
    if not results.steps:
        return [evaluating]
    epochs = f"{training.epoch:.3g} epoch{'s' if training.epoch != 1 else ''}" if training.epoch else ""
    best = min(results.validation, key=lambda point: point.loss, default=None)
    kept = ", published" if results.prepared.resolved.publish is Publish.BEST else ""
    return [
        Fact("Optimizer steps", f"{training.step:,}", epochs),
        *([Fact("Lowest validation loss", f"{best.loss:.3g}", f"after step {best.step:,}{kept}")] if best else []),
        Fact("Training time", duration(results.training_seconds), f"on {training.device}"),
        Fact("Throughput", f"{training.tokens_per_second or 0:,.0f}", "tokens per second"),
        Fact("Peak memory", peak_memory(results), "during training"),
        evaluating,
    ]


def peak_memory(results: Results) -> str:
    """Returns the peak memory of all steps: GPU memory, or the process's memory on a CPU. "" if nothing was trained."""
    return gibibytes(max(step.memory for step in results.steps)) if results.steps else ""


def evaluation_seconds(results: Results) -> float:
    """Returns the seconds that all models together needed on the held-out rows."""
    few_shot = results.assessment.baselines.few_shot
    return results.base.seconds + (few_shot.seconds if few_shot else 0) + results.tuned.seconds


def data_facts(results: Results) -> list[Fact]:
    """Returns the numbers of rows and tokens after each step of the preflight."""
    data = results.prepared.preflight
    splits = data.splits
    counts = {
        "Rows read": data.rows,
        "Invalid rows": data.invalid,
        "Exact duplicates dropped": data.duplicates,
        "Near-duplicates": data.near_duplicates,
        "Too long, dropped": data.overlength,
        "Training rows": splits and splits.train,
        "Validation rows": len(results.prepared.validation) or None,
        "Held-out rows": splits and splits.test,
        "Held-out rows measured": results.evaluation.rows,
        "Tokens per epoch": data.tokens,
        "Trained tokens per epoch": data.supervised_tokens,
        "Longest row allowed (tokens)": results.prepared.resolved.max_sequence_length,
    }
    return [Fact(name, f"{count:,}") for name, count in counts.items() if count is not None]


def recipe(results: Results) -> list[Fact]:
    """Returns the training settings."""
    spec, resolved = results.bundle.spec, results.prepared.resolved
    training = spec.training
    method = method_text(spec.method, resolved.method)
    if not resolved.total_steps:
        return [Fact("Method", method), Fact("Seed", f"{spec.dataset.split.seed} for the split")]
    steps = f"{resolved.warmup_steps} warm-up step{'s' if resolved.warmup_steps != 1 else ''}"
    norm = training.max_grad_norm
    clipped = f"gradient norm clipped at {norm:g}" if norm else "no gradient clipping"
    decay = f"{training.optimizer}, weight decay {training.weight_decay:g}, {clipped}"
    rate = f"peak {resolved.learning_rate:g} after {steps}, then {FALLS[training.scheduler]}"
    return [
        Fact("Method", f"{method}. {resolved.method_reason}" if resolved.method_reason else method),
        Fact("Learning rate", rate),
        Fact("Optimizer", decay),
        Fact("Batch size", f"{training.global_batch_size} rows per optimizer step, {layout_text(results)}"),
        Fact("Seed", f"{training.seed} for the training, {spec.dataset.split.seed} for the split"),
    ]


def layout_text(results: Results) -> str:
    """Returns the micro-batch size, and whether gradient checkpointing was on."""
    training = results.training
    tokens = training.micro_batch_tokens or results.prepared.resolved.micro_batch_tokens
    checkpointing = ", gradient checkpointing" if training.gradient_checkpointing else ""
    # Without packing, micro_batch_tokens is the length of the longest row and not the size of a micro-batch.
    return f"micro-batches of {'one row' if training.packed is False else f'{tokens:,} tokens'}{checkpointing}"


def method_text(method: Method, resolved: MethodType) -> str:
    """Returns the method with its settings, in the terms that PEFT users know."""
    if resolved is MethodType.FULL:
        return "Full: all weights were trained, in fp32 with bfloat16 compute"
    if resolved is MethodType.NONE:
        return f"None: nothing was trained, the adapter {method.lora.from_} was evaluated as it is"
    lora, four_bit = method.lora, method.quantization or Quantization()
    double = ", double quantization" if four_bit.double_quant else ""
    settings = [
        f"{resolved}{f' ({four_bit.type}{double})' if resolved is MethodType.QLORA else ''}: r {lora.r}",
        f"alpha {lora.alpha}",
        f"dropout {lora.dropout:g} on {', '.join(lora.target_modules)}",
    ]
    switches = {"rsLoRA": lora.use_rslora, "DoRA": lora.use_dora, f"bias {lora.bias}": lora.bias is not LoraBias.NONE}
    settings += [name for name, on in switches.items() if on]
    settings += [f"{', '.join(lora.modules_to_save)} fully trained"] if lora.modules_to_save else []
    return ", ".join(settings) + (f"; training continued from the adapter {lora.from_}" if lora.from_ else "")


def provenance(results: Results) -> list[Fact]:
    """Returns the inputs and the software that produced the results."""
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
        *(Fact(f"Commit of {uri}", commit) for uri, commit in prepared.commits.items()),
        *_download(results.training),
        *_sources("Training rows", dataset.train, dataset.source_names("train")),
        *_sources("Validation rows", dataset.validation, dataset.source_names("validation")),
        *_sources("Held-out rows", dataset.test, dataset.source_names("test")),
        Fact("Output", bundle.spec.output.uri),
        Fact("Data digest", prepared.preflight.digest or ""),
        Fact("Spec digest", bundle.spec_digest),
        Fact("Software", software),
    ]


def _download(training: Training) -> list[Fact]:
    """Returns how long the attempt waited for the base model, if it is known."""
    if training.model_seconds is None:
        return []
    return [Fact("Fetching the base model", f"{duration(training.model_seconds)}, while the device waited")]


def _sources(title: str, sources: Sequence[RowFiles] | None, names: Sequence[str]) -> list[Fact]:
    return [Fact(f"{title} ({name})", source.uri) for name, source in zip(names, sources or [], strict=True)]
