"""The base model becomes the tuned model, and its weights are staged for publishing."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree, ignore_patterns
from time import perf_counter

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish
from finetune_api.status.preflight import Resolved
from finetune_trainer.base.composite import copy_processor
from finetune_trainer.base.model_files import ADAPTER_CONFIG
from finetune_trainer.checkpoints.earlier_job import earlier_results
from finetune_trainer.evaluation.verdict import Cost
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.model.parameters.loading import load_model, whole_model
from finetune_trainer.model.parameters.sharding import CPU, collected, load_sharded, shard
from finetune_trainer.model.parameters.targets import train_whole
from finetune_trainer.model.parameters.trainable import as_published, hold_in_fp32, make_trainable
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.rank import is_first, is_first_of_node
from finetune_trainer.ranks.group import on_first
from finetune_trainer.ranks.shards import is_sharded, release
from finetune_trainer.results.publish import ADAPTER, MODEL, stage_weights
from finetune_trainer.train.telling import TRAINED, tell
from finetune_trainer.train.work import Work
from finetune_trainer.training.kept_training import KeptTraining, keep_training, kept_training
from finetune_trainer.training.loop import Step
from finetune_trainer.training.run import TrainingRun
from finetune_trainer.training.run_state import RunState
from finetune_trainer.training.spent import Machine, machine_of
from finetune_trainer.training.training_progress import duration
from finetune_trainer.training.validation import Validation


@dataclass(frozen=True, eq=False)
class Tuning:
    """A finished training, without its model."""

    run: RunState | None
    """None if nothing was trained."""
    trained: KeptTraining | None
    """The training of an earlier attempt, if this attempt takes it over."""
    validation: Validation

    @property
    def steps(self) -> Sequence[Step]:
        """All optimizer steps, also those of earlier attempts."""
        return self.run.steps if self.run else []


@dataclass(frozen=True)
class Weights:
    """The tuned weights as they are published."""

    adapter: LoraConfig | None
    """The adapter's settings. None if the whole model was tuned."""
    folder: Path


def tune(work: Work, model: PreTrainedModel, until_kept: ExitStack) -> tuple[PreTrainedModel, Tuning]:
    """Trains the base model, or loads the weights that an earlier attempt trained. Returns the tuned model as it is
    published. `until_kept`: has to be open until `stage` returns. Raises what `TrainingRun.take` does."""
    phase("preparing the training")
    bundle, prepared, accelerator = work.bundle, work.prepared, work.accelerator
    resolved = prepared.resolved
    measured = resolved.model_copy(update={"micro_batch_tokens": work.attempt.tokens(resolved)})
    validation = Validation(prepared.validation, bundle.spec.training, measured, accelerator, work.scratch)
    trained = finished_training(work) if resolved.total_steps else None
    tell(work.writer, TRAINED, "Training", str(trained) if trained else announcement(bundle, prepared))
    model = trainable_model(model, work, trained)
    run = trained.run if trained else None
    if trained:
        trained.tell(work.progress, validation)
    elif resolved.total_steps:
        course = TrainingRun(
            bundle, prepared, work.storage, accelerator, work.attempt, work.progress, validation, work.scratch
        )
        run = course.take(model, lambda message: work.tell("Training", message), until_kept)
    return as_published(accelerator.unwrap_model(model)), Tuning(run, trained, validation)


def finished_training(work: Work) -> KeptTraining | None:
    """Returns the training that an earlier attempt or the job of spec.resumeFrom has finished, or None."""
    resume = work.bundle.spec.resume_from
    earlier = earlier_results(work.bundle, work.storage, work.prepared, work.scratch / "earlier")
    return kept_training(work.kept_training, earlier, resume.name if resume else "")


def stage(work: Work, model: PreTrainedModel, tuning: Tuning) -> Weights:
    """Writes the tuned weights to the output folder, and keeps them for a later attempt. Reports the training. Rank 0
    does it for all ranks. The first rank of each other node writes the weights too if they are read there again."""
    is_whole = is_sharded(model) and not isinstance(model, PeftModel)
    if is_whole:
        model = collected(model, work.model_folder, work.scratch / "collected.safetensors") or model
    if not (is_first() or (is_first_of_node() and (is_whole or work.bundle.spec.output.merge))):
        return Weights(None, work.output)
    said = summary(tuning.steps, tuning.validation, work.prepared.resolved)
    tell(work.writer, TRAINED, "TrainingSucceeded", said, held=True, training=work.progress.training)
    phase("saving the tuned weights")
    with whole_model(work.model_folder):
        adapter = stage_weights(model, work.tokenizer, work.bundle, work.serving, work.output)
    weights = Weights(adapter, work.output / (ADAPTER if adapter else MODEL))
    if adapter is None:
        copy_processor(work.model_folder, weights.folder)
    _keep(work, tuning, weights)
    return weights


def as_measured(work: Work, model: PreTrainedModel) -> PreTrainedModel:
    """Returns the tuned model that is measured: `model`, or the staged one if all weights of `model` are sharded. All
    ranks have to call it after `stage`."""
    if not is_sharded(model) or isinstance(model, PeftModel):
        return model
    on_first(lambda: None)  # it has written the weights
    release(model)  # the trained weights are in fp32
    return work.accelerator.prepare_model(load_sharded(work.output / MODEL, MethodType.FULL, work.device))


def _keep(work: Work, tuning: Tuning, weights: Weights) -> None:
    """Keeps the weights, or replaces them by those that are kept already."""
    if tuning.trained:
        # The same files, byte for byte: bitsandbytes changes the number format of biases while it computes.
        with whole_model(tuning.trained.weights):
            # The settings of an adapter name the base model, which can lie elsewhere for another job.
            ignored = ignore_patterns(ADAPTER_CONFIG) if tuning.trained.job else None
            copytree(tuning.trained.weights, weights.folder, ignore=ignored, dirs_exist_ok=True)
    elif is_first() and tuning.run:
        run = tuning.run.after(perf_counter() - work.attempt.started, machine_of(work.bundle, work.device))
        # They are as good as a checkpoint of the last step: a later attempt takes no step again.
        stored = partial(work.progress.stored, len(tuning.steps))
        is_adapter = weights.adapter is not None
        keep_training(work.kept_training, run, weights.folder, is_adapter, stored)


def trainable_model(model: PreTrainedModel, work: Work, trained: KeptTraining | None) -> PreTrainedModel:
    """Returns the base model with the parameters to train, or with those of `trained`, a finished training."""
    spec, prepared, accelerator = work.bundle.spec, work.prepared, work.accelerator
    method = prepared.resolved.method
    if prepared.sharded_on(work.bundle):
        release(model)  # an adapter is added before the weights are sharded
        return accelerator.prepare_model(sharded_model(work, trained))
    if trained and method is MethodType.FULL:
        model.to("meta")  # frees its memory, because there is none for two whole models
        return accelerator.prepare_model(load_model(trained.weights, method, accelerator.device))
    start = trained.weights if trained else prepared.adapter
    return accelerator.prepare_model(make_trainable(model, spec.method, method, spec.training.seed, start))


def sharded_model(work: Work, trained: KeptTraining | None) -> PreTrainedModel:
    """Returns the same as `trainable_model`, with shards of the weights on each rank."""
    spec, method = work.bundle.spec, work.prepared.resolved.method
    if method is MethodType.FULL:
        if trained:
            return load_sharded(trained.weights, method, work.device)
        model = load_model(work.model_folder, method, CPU)
        train_whole(model)
        shard(model, work.device, bf16=True, prepare=hold_in_fp32)
        return model
    start = trained.weights if trained else work.prepared.adapter
    model = make_trainable(load_model(work.model_folder, method, CPU), spec.method, method, spec.training.seed, start)
    shard(model, work.device, bf16=True)
    return model


def announcement(bundle: Bundle, prepared: Prepared) -> str:
    """Returns the message of the condition Trained when the training starts."""
    if not prepared.resolved.total_steps:
        return "Using the adapter unchanged: spec.method.type None trains nothing."
    rows = f"Training on {len(prepared.train):,} rows."
    if not prepared.sharded_on(bundle):
        return rows
    gpus = bundle.spec.compute.gpus
    return f"{rows} The weights are sharded over {gpus} GPUs, because the model does not fit one of them."


def summary(steps: Sequence[Step], validation: Validation, resolved: Resolved) -> str:
    """Returns one to three sentences on the training: steps, duration, loss, and the best validation loss."""
    if not steps:
        return "Nothing was trained."
    seconds = sum(step.seconds for step in steps)
    early = f" of {resolved.total_steps:,}" if len(steps) < resolved.total_steps else ""
    first, last = steps[0].loss, steps[-1].loss
    moved = f"The loss changed from {first:.3g} to {last:.3g}." if len(steps) > 1 else f"The loss was {first:.3g}."
    text = f"{len(steps):,}{early} step{'s' if len(steps) > 1 or early else ''} in {duration(seconds)}. {moved}"
    best = validation.best
    if best is None:
        return text
    kept = ", and the weights of this step are published" if resolved.publish is Publish.BEST else ""
    stopped = " Training stopped early, because the validation loss no longer improved." if validation.over else ""
    return f"{text}{stopped} The validation loss was lowest after step {best.step:,} ({best.loss:.3g}){kept}."


def cost_of(run: RunState | None, started: float, machine: Machine) -> Cost | None:
    """Returns the cost of the training until now, or None if nothing was trained. `started`: the perf_counter value at
    the start of this attempt. `machine`: that of this attempt."""
    if run is None or not run.steps:
        return None
    seconds, tokens = sum(step.seconds for step in run.steps), sum(step.tokens for step in run.steps)
    if not machine.gpus:
        return Cost(seconds, tokens)
    spent = run.spent(perf_counter() - started, machine)
    return Cost(seconds, tokens, spent.gpu_seconds / 3600, None if spent.cost is None else f"{spent.cost:.2f}")
