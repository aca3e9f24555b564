"""Training: from the prepared data and the base model to a published adapter and a verdict. `recipe` is all of it."""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason, sentence
from finetune_api.run_time import cost as price_of
from finetune_api.status import ConditionType, Evaluation, Training
from finetune_trainer.assessment import Assessor
from finetune_trainer.attention import prove_isolation
from finetune_trainer.batches import steps_per_epoch
from finetune_trainer.evaluate import Evaluator
from finetune_trainer.failure import Superseded, TrainerFailure, failure_of
from finetune_trainer.gates import require_passed, shortfall
from finetune_trainer.merge import merge
from finetune_trainer.mixing import Mixture
from finetune_trainer.model import (
    attach_lora,
    choose_device,
    greedy_generation,
    is_model_file,
    load_model,
    load_tokenizer,
)
from finetune_trainer.model_card import base_license
from finetune_trainer.ownership import published
from finetune_trainer.prepared import Prepared, read_prepared, work_prefix
from finetune_trainer.publish import ADAPTER, MERGED, publish, published_artifacts, stage_adapter
from finetune_trainer.results import Results
from finetune_trainer.row_store import mixtures
from finetune_trainer.scratch import scratch_folder
from finetune_trainer.serving import serving_of
from finetune_trainer.status_writer import StatusWriter
from finetune_trainer.storage import Storage
from finetune_trainer.termination import stop_deferred, stop_requested
from finetune_trainer.training_loop import Step, training_steps
from finetune_trainer.training_progress import TrainingProgress, duration
from finetune_trainer.verdict import Cost

TRAINED, EVALUATED = ConditionType.TRAINED, ConditionType.EVALUATED


def train(bundle: Bundle, storage: Storage, writer: StatusWriter, attempt: int) -> str:
    """Trains, compares base and tuned model and publishes, saying so in the job's status. Returns the verdict.

    Raises TrainerFailure, after the status carries it, and Superseded when another attempt has taken over."""
    try:
        if manifest := published(storage, bundle):
            return tell_published(manifest, bundle, storage, writer)
        return recipe(bundle, storage, writer, attempt)
    except Superseded:
        raise
    except BaseException as error:
        tell_failure(failure_of(error), writer)
        raise


def recipe(bundle: Bundle, storage: Storage, writer: StatusWriter, attempt: int) -> str:
    """All of it in order, where nothing is published yet."""
    spec, started = bundle.spec, perf_counter()
    with scratch_folder("train-") as scratch:
        prepared = read_prepared(storage, bundle, scratch)
        resolved = prepared.resolved
        device, device_name = choose_device(bundle.allow_cpu)
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
        epoch = steps_per_epoch(len(prepared.train), spec.training.global_batch_size)
        progress = TrainingProgress(writer, attempt, device_name, resolved.total_steps, epoch)

        tell(writer, TRAINED, "LoadingModel", f"Loading the base model {spec.model.uri}.", training=progress.training)
        storage.download_folder(spec.model.uri, scratch / "model", is_model_file)
        tokenizer, model = load_tokenizer(scratch / "model"), load_model(scratch / "model", resolved.method, device)
        prove_isolation(model)
        generation = greedy_generation(model, prepared.stop_token_ids, resolved.max_new_tokens)
        evaluator = Evaluator(tokenizer, resolved.micro_batch_tokens, generation, accelerator)
        assessor = Assessor(bundle, prepared, evaluator)

        held_out = len(assessor.held_out)
        tell(writer, TRAINED, "EvaluatingBase", f"Answering {held_out:,} held-out rows with the base model.")
        baselines = assessor.baselines(model)

        tell(writer, TRAINED, "Training", f"Learning from {len(prepared.train):,} rows.")
        model = accelerator.prepare_model(attach_lora(model, spec.method, spec.training.seed))
        steps = take_steps(model, bundle, prepared, accelerator, progress)
        training = progress.training
        tell(writer, TRAINED, "TrainingSucceeded", summary(steps), held=True, training=training)

        print(f"Answering {held_out:,} held-out rows with the tuned model.", flush=True)
        assessment = assessor.assess(
            accelerator.unwrap_model(model), baselines, cost_of(steps, device, started, bundle)
        )
        tell_assessment(assessment.evaluation, writer)

        output, serving = scratch / "output", serving_of(prepared, tokenizer)
        adapter = accelerator.unwrap_model(model).peft_config["default"]
        stage_adapter(accelerator.unwrap_model(model), tokenizer, bundle, serving, output)
        if spec.output.merge:
            # One model at a time: the merged one is read into the place of this.
            del model
            accelerator.free_memory()
            folders = (scratch / "model", output / ADAPTER, output / MERGED)
            merged = merge(*folders, assessment.tuned, assessor.held_out, prepared, tokenizer, accelerator)
            assessment = assessment.with_merged(merged)
            tell_assessment(assessment.evaluation, writer)
        license = base_license(scratch / "model")
        results = Results(bundle, prepared, training, steps, assessor.held_out, assessment, serving, adapter, license)
        artifacts = publish(storage, results, output)
        writer.result(artifacts=artifacts)
        require_passed(assessment.evaluation)
    return assessment.evaluation.verdict or ""


def take_steps(
    model: nn.Module, bundle: Bundle, prepared: Prepared, accelerator: Accelerator, progress: TrainingProgress
) -> list[Step]:
    """Trains to the last step. Raises TrainerFailure Preempted after the step in which SIGTERM came, LossDiverged, and
    Superseded."""
    steps = []
    recipe = bundle.spec.training
    mixture = Mixture.of(mixtures(prepared.train), [source.weight for source in bundle.spec.dataset.train])
    with stop_deferred():
        for step in training_steps(model, prepared.train, recipe, prepared.resolved, accelerator, mixture):
            steps.append(step)
            progress.advance(step)
            if stop_requested():
                finding = f"The pod was told to stop (SIGTERM) after step {step.number:,} of {progress.total_steps:,}."
                raise TrainerFailure(FailureReason.PREEMPTED, finding, step.number)
    return steps


def summary(steps: Sequence[Step]) -> str:
    """What the training came to, in one sentence."""
    seconds = sum(step.seconds for step in steps)
    return (
        f"{len(steps):,} steps in {duration(seconds)}; the loss went from {steps[0].loss:.3g} to {steps[-1].loss:.3g}."
    )


def cost_of(steps: Sequence[Step], device: torch.device, started: float, bundle: Bundle) -> Cost:
    """What the run took; `started`: when the attempt did, as perf_counter says."""
    seconds, tokens = sum(step.seconds for step in steps), sum(step.tokens for step in steps)
    if device.type != "cuda":
        return Cost(seconds, tokens)
    held = perf_counter() - started
    price = next((gpu.price_per_hour for gpu in bundle.gpu_types), None)
    return Cost(seconds, tokens, held / 3600, price_of(held, price) if price else None)


def tell_assessment(evaluation: Evaluation, writer: StatusWriter) -> None:
    """Says what the evaluation found, before the results are published."""
    if evaluation.passed is False:
        reason, message = str(FailureReason.EVALUATION_GATE_FAILED), shortfall(evaluation)
    else:
        merged = evaluation.merged.message if evaluation.merged and evaluation.merged.changed else ""
        reason, message = "EvaluationSucceeded", f"{evaluation.verdict} {merged}".strip()
    tell(writer, EVALUATED, reason, message, held=evaluation.passed is not False, evaluation=evaluation)


def tell(
    writer: StatusWriter, type: ConditionType, reason: str, message: str, held: bool = False, **parts: Any
) -> None:
    """Says in the log and in the status what is being done or was found; `parts` are fields of the status. Raises
    Superseded as StatusWriter.progress does."""
    print(message, flush=True)
    writer.condition(type, held, reason, message)
    writer.progress(**parts)


def tell_failure(failure: TrainerFailure, writer: StatusWriter) -> None:
    """Says in the status why the work ended. Once, whether it arrives or not: the termination message says it too, and
    a pod that has to end, perhaps with a GPU, does not wait for an API server."""
    stage = EVALUATED if writer.intent.is_true(TRAINED) else TRAINED
    writer.condition(stage, False, failure.reason, sentence(failure.reason, failure.message))
    writer.progress()


def tell_published(manifest: dict[str, Any], bundle: Bundle, storage: Storage, writer: StatusWriter) -> str:
    """Says again what this very job published before its pod was started once more. Returns the verdict."""
    evaluation = Evaluation.model_validate(manifest["evaluation"])
    verdict = evaluation.verdict or ""
    writer.condition(TRAINED, True, "TrainingSucceeded", "Trained and published before.")
    writer.condition(EVALUATED, True, "EvaluationSucceeded", verdict)
    training = Training.model_validate(manifest["training"])
    writer.result(training=training, evaluation=evaluation, artifacts=published_artifacts(storage, bundle))
    storage.delete_prefix(work_prefix(bundle))
    require_passed(evaluation)
    return verdict
