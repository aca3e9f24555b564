"""What the training pod writes to its log and to the status."""

from collections.abc import Mapping
from typing import Any

from finetune_api.reasons import FailureReason
from finetune_api.status.evaluation import Evaluation
from finetune_api.status.job import Artifacts, ConditionType, Training
from finetune_trainer.evaluation.gates import require_passed, shortfall
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.status.status_writer import StatusWriter
from finetune_trainer.pod.termination import write_failure

TRAINED, EVALUATED = ConditionType.TRAINED, ConditionType.EVALUATED


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


def tell_published(manifest: Mapping[str, Any], artifacts: Artifacts, writer: StatusWriter) -> str:
    """Reports results that are published: those of this pod, or of another pod of the job. Returns the verdict. Raises
    TrainerFailure EvaluationGateFailed if they have not passed."""
    evaluation = Evaluation.model_validate(manifest["evaluation"])
    if not writer.intent.is_true(TRAINED):
        writer.condition(TRAINED, True, "TrainingSucceeded", "The job was trained and published before.")
    writer.condition(EVALUATED, *outcome(evaluation))
    training = Training.model_validate(manifest["training"])
    writer.result(training=training, evaluation=evaluation, artifacts=artifacts)
    require_passed(evaluation)
    return evaluation.verdict or ""
