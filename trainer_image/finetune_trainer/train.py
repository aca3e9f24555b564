"""The training pod: from the prepared data and the base model to published weights and a verdict. See `recipe`."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from shutil import copytree
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_api.spec.training import Publish
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.job import ConditionType, Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.base.model_files import ADAPTER as ADAPTER_FILES
from finetune_trainer.base.model_files import copy_files
from finetune_trainer.checkpoints.kept import KeptResults
from finetune_trainer.checkpoints.result_facts import result_facts
from finetune_trainer.evaluation.base_measurement import measure_base
from finetune_trainer.evaluation.gates import require_passed, shortfall
from finetune_trainer.evaluation.kept_measurements import of_tuned
from finetune_trainer.evaluation.verdict import Cost
from finetune_trainer.handover.prepared import Prepared, read_prepared, work_prefix
from finetune_trainer.model.batches import steps_per_epoch
from finetune_trainer.model.loading import choose_device, load_model, load_tokenizer, mixed_precision, whole_model
from finetune_trainer.model.trainable import as_published, make_trainable
from finetune_trainer.pod.failure import Superseded, TrainerFailure
from finetune_trainer.pod.heartbeat import phase
from finetune_trainer.pod.ownership import published
from finetune_trainer.pod.scratch import scratch_folder
from finetune_trainer.pod.status_writer import StatusWriter
from finetune_trainer.pod.storage import JobStorage, join
from finetune_trainer.pod.termination import failure_after_stop, stop_deferred, write_failure
from finetune_trainer.results.merge import MergeFolders, merge
from finetune_trainer.results.model_card import base_license
from finetune_trainer.results.publish import (
    ADAPTER,
    MERGED,
    MODEL,
    publish,
    published_artifacts,
    stage_weights,
    upload_results,
    weights_kept,
)
from finetune_trainer.results.results import Results
from finetune_trainer.results.serving import serving_of
from finetune_trainer.sizing.run_time import cost as price_of
from finetune_trainer.training.kept_training import KeptTraining, keep_training, kept_training
from finetune_trainer.training.loop import Step
from finetune_trainer.training.run import Attempt, TrainingRun
from finetune_trainer.training.training_progress import TrainingProgress, duration
from finetune_trainer.training.validation import Validation

TRAINED, EVALUATED = ConditionType.TRAINED, ConditionType.EVALUATED


def train(bundle: Bundle, storage: JobStorage, writer: StatusWriter, attempt: int, halvings: int = 0) -> str:
    """Trains, compares base and tuned model, publishes, and reports each step in the job's status. Returns the verdict.

    `halvings`: number of earlier attempts that ran out of GPU memory. Raises TrainerFailure after writing it to the
    status, and Superseded if another attempt has replaced this one."""
    try:
        if manifest := published(storage, bundle):
            return tell_published(manifest, bundle, storage, writer)
        return recipe(bundle, storage, writer, Attempt(attempt, halvings, perf_counter()))
    except Superseded:
        raise
    except BaseException as error:
        tell_failure(failure_after_stop(error), writer)
        raise


def recipe(bundle: Bundle, storage: JobStorage, writer: StatusWriter, attempt: Attempt) -> str:
    """Runs all steps in order. Requires that this job has not published results yet."""
    spec = bundle.spec
    with scratch_folder("train-") as scratch:
        prepared = read_prepared(storage, bundle, scratch)
        resolved = prepared.resolved
        device, device_name = choose_device(bundle.allow_cpu)
        precision = mixed_precision(resolved.method, spec.method.quantization)
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
        epoch = steps_per_epoch(len(prepared.train), spec.training.global_batch_size)
        progress = TrainingProgress(writer, attempt.number, device_name, resolved.total_steps, epoch)

        phase("downloading the base model")
        tell(writer, TRAINED, "LoadingModel", f"Loading the base model {spec.model.uri}.", training=progress.training)
        storage.pin(prepared.commits)
        progress.model_seconds = fetch_model(storage, spec.model.uri, prepared, scratch / "model")
        tokenizer = load_tokenizer(scratch / "model")
        facts, place = result_facts(bundle, prepared, device.type), join(work_prefix(bundle), "kept")
        kept = KeptResults(storage, place, attempt.number, facts, scratch / "kept")
        model, assessor, baselines = measure_base(
            bundle,
            prepared,
            tokenizer,
            accelerator,
            scratch / "model",
            kept,
            lambda message: tell(writer, TRAINED, "EvaluatingBase", message),
        )

        phase("preparing the training")
        validation = Validation(prepared.validation, spec.training, resolved, accelerator, scratch)
        trained = kept_training(kept) if resolved.total_steps else None
        tell(writer, TRAINED, "Training", str(trained) if trained else announcement(prepared))
        model = trainable_model(model, bundle, prepared, storage, accelerator, trained, scratch)
        run = trained.run if trained else None
        if trained:
            trained.tell(progress, validation)
        elif resolved.total_steps:
            course = TrainingRun(bundle, prepared, storage, accelerator, attempt, progress, validation, scratch)
            run = course.take(
                model, lambda message: tell(writer, TRAINED, "Training", message, training=progress.training)
            )
        steps, attempt = (run.steps, attempt.after(run.held_before)) if run else ([], attempt)
        training = progress.training
        model = as_published(accelerator.unwrap_model(model))
        # An adapter is small enough to keep it first after SIGTERM, so that no step of it is lost.
        with stop_deferred() if isinstance(model, PeftModel) else nullcontext():
            said = summary(steps, validation, resolved)
            tell(writer, TRAINED, "TrainingSucceeded", said, held=True, training=training)
            output, serving = scratch / "output", serving_of(prepared, tokenizer)
            phase("saving the tuned weights")
            with whole_model(scratch / "model"):
                adapter = stage_weights(model, tokenizer, bundle, serving, output)
            weights = output / (ADAPTER if adapter else MODEL)
            if trained:
                # The same files, byte for byte: bitsandbytes changes the number format of biases while it computes.
                copytree(trained.weights, weights, dirs_exist_ok=True)
            elif run and keep_training(kept, run, perf_counter() - attempt.started, weights):
                # They are as good as a checkpoint of the last step: a later attempt takes no step again.
                progress.stored(len(run.steps))
                training = progress.training
        with weights_kept(storage, bundle, output):
            started, remember = attempt.started, of_tuned(kept, weights)
            assessment = assessor.assess(model, baselines, lambda: cost_of(steps, device, started, bundle), remember)
            tell_assessment(assessment.evaluation, writer)
            if spec.output.merge:
                phase("merging")
                # Only one model fits into memory at a time, so the tuned model is deleted before merging.
                del model
                accelerator.free_memory()
                folders = MergeFolders(scratch / "model", output / ADAPTER, output / MERGED)
                merged = merge(folders, assessment.tuned, assessor.held_out, prepared, tokenizer, accelerator)
                assessment = assessment.with_merged(merged)
                tell_assessment(assessment.evaluation, writer)
            phase("publishing the results")
            license, curve = base_license(scratch / "model"), validation.curve
            results = Results(
                bundle=bundle,
                prepared=prepared,
                training=training,
                steps=steps,
                held_out=assessor.held_out,
                assessment=assessment,
                serving=serving,
                adapter=adapter,
                base_license=license,
                validation=curve,
            )
            files = upload_results(storage, results, output)
        with stop_deferred():
            # Once the manifest is published the job is done. A SIGTERM must not keep this out of the status.
            writer.result(artifacts=publish(storage, results, output, files))
        require_passed(assessment.evaluation)
    return assessment.evaluation.verdict or ""


def trainable_model(
    model: PreTrainedModel,
    bundle: Bundle,
    prepared: Prepared,
    storage: JobStorage,
    accelerator: Accelerator,
    trained: KeptTraining | None,
    scratch: Path,
) -> PreTrainedModel:
    """Returns the base model with the parameters to train, or with those of `trained`, a finished training."""
    spec, method = bundle.spec, prepared.resolved.method
    if trained and method is MethodType.FULL:
        model.to("meta")  # frees its memory, because there is none for two whole models
        return accelerator.prepare_model(load_model(trained.weights, method, accelerator.device))
    start = trained.weights if trained else fetch_adapter(storage, spec.method.lora.from_, scratch / "previous")
    return accelerator.prepare_model(make_trainable(model, spec.method, method, spec.training.seed, start))


def announcement(prepared: Prepared) -> str:
    """Returns the message of the condition Trained when the training starts."""
    rows = f"Training on {len(prepared.train):,} rows."
    return (
        rows if prepared.resolved.total_steps else "Using the adapter unchanged: spec.method.type None trains nothing."
    )


def fetch_model(storage: JobStorage, uri: str, prepared: Prepared, folder: Path) -> float:
    """Downloads the base model into `folder`. Returns the seconds that this took."""
    started = perf_counter()
    copy_files(storage, uri, prepared.model_files, folder)
    seconds = perf_counter() - started
    print(f"The base model was downloaded in {duration(seconds)}.", flush=True)
    return round(seconds, 1)


def fetch_adapter(storage: JobStorage, uri: str | None, folder: Path) -> Path | None:
    """Downloads the adapter to continue from into `folder`. Returns the folder, or None without such an adapter."""
    if uri is None:
        return None
    storage.download_folder(uri, folder, lambda path: path in ADAPTER_FILES)
    return folder


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


def cost_of(steps: Sequence[Step], device: torch.device, started: float, bundle: Bundle) -> Cost | None:
    """Returns the cost of the training until now, or None if nothing was trained. `started`: the perf_counter value at
    the start of the attempt, or earlier by the time that earlier attempts took."""
    if not steps:
        return None
    seconds, tokens = sum(step.seconds for step in steps), sum(step.tokens for step in steps)
    if device.type != "cuda":
        return Cost(seconds, tokens)
    held = perf_counter() - started
    price = next((gpu.price_per_hour for gpu in bundle.gpu_types), None)
    return Cost(seconds, tokens, held / 3600, price_of(held, price) if price else None)


def tell_assessment(evaluation: Evaluation, writer: StatusWriter) -> None:
    """Reports the result of the evaluation in the condition Evaluated, before the results are published."""
    held, reason, message = outcome(evaluation)
    tell(writer, EVALUATED, reason, message, held=held, evaluation=evaluation)


def outcome(evaluation: Evaluation) -> tuple[bool, str, str]:
    """Returns status (true or false), reason and message of the condition Evaluated."""
    if evaluation.passed is False:
        return False, FailureReason.EVALUATION_GATE_FAILED, shortfall(evaluation)
    merged = evaluation.merged.message if evaluation.merged and evaluation.merged.changed else ""
    return True, "EvaluationSucceeded", f"{evaluation.verdict or ''} {merged}".strip()


def tell(
    writer: StatusWriter, type: ConditionType, reason: str, message: str, held: bool = False, **parts: Any
) -> None:
    """Reports `message` in the log and in a condition. `parts`: fields of the status to write with it. Raises
    Superseded as StatusWriter.progress does."""
    print(message, flush=True)
    writer.condition(type, held, reason, message)
    writer.progress(**parts)


def tell_failure(failure: TrainerFailure, writer: StatusWriter) -> None:
    """Reports the failure in the status. A SIGTERM after the results are published is no failure.

    It tries to write the status only once, because the termination message has the same content, and a pod that holds
    a GPU must not wait for the API server."""
    write_failure(failure)
    if writer.intent.artifacts and failure.reason is FailureReason.PREEMPTED:
        return
    stage = EVALUATED if writer.intent.is_true(TRAINED) else TRAINED
    writer.condition(stage, False, failure.reason, failure.for_the_status)
    writer.progress()


def tell_published(manifest: dict[str, Any], bundle: Bundle, storage: JobStorage, writer: StatusWriter) -> str:
    """Reports the results that this job published before its pod was restarted. Returns the verdict."""
    evaluation = Evaluation.model_validate(manifest["evaluation"])
    writer.condition(TRAINED, True, "TrainingSucceeded", "The job was trained and published before.")
    writer.condition(EVALUATED, *outcome(evaluation))
    training = Training.model_validate(manifest["training"])
    writer.result(training=training, evaluation=evaluation, artifacts=published_artifacts(storage, bundle))
    storage.delete_prefix(work_prefix(bundle))
    require_passed(evaluation)
    return evaluation.verdict or ""
