"""Takes the optimizer steps of a job: from the newest checkpoint, or from the first step, to the last one."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from finetune_api.bundle import Bundle
from finetune_api.reasons import FailureReason
from finetune_api.status.preflight import Resolved
from finetune_trainer.checkpoints.earlier_job import earlier_store, no_checkpoint
from finetune_trainer.checkpoints.folder import Unusable
from finetune_trainer.checkpoints.identity import facts
from finetune_trainer.checkpoints.pace import Pace
from finetune_trainer.checkpoints.store import CHECKPOINTS, KEEP, CheckpointStore, Found
from finetune_trainer.checkpoints.training_state import misfit, restore
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.handover.prepared_place import Renewal, work_prefix
from finetune_trainer.model.parameters.trainable import use_gradient_checkpointing
from finetune_trainer.pod.failure import PeerFailed, StopRequested, Superseded, TrainerFailure, failure_of
from finetune_trainer.pod.liveness.heartbeat import phase
from finetune_trainer.pod.rank import is_first, own_pod
from finetune_trainer.pod.termination import (
    check_stop,
    seconds_left,
    steps_done,
    stop_deferred,
    why_stopped,
    write_failure,
)
from finetune_trainer.ranks.gradients import connect
from finetune_trainer.ranks.group import agreed, found_on_each_node, on_each_node, on_first
from finetune_trainer.storage.job_storage import JobStorage, join
from finetune_trainer.tokens.row_store import lengths, mixtures
from finetune_trainer.training.checkpointing.checkpoints import Checkpoints
from finetune_trainer.training.checkpointing.other_ranks import NoCheckpoints
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.loop import training_steps
from finetune_trainer.training.memory_probe import after_earlier_job, find_plan, smaller
from finetune_trainer.training.optimizer import make_optimizer
from finetune_trainer.training.run_state import RunState, Words, other_records, resumed
from finetune_trainer.training.spent import machine_of
from finetune_trainer.training.training_progress import TrainingProgress
from finetune_trainer.training.validation import Validation


@dataclass(frozen=True)
class Attempt:
    """Which attempt this is, and what the operator told it."""

    number: int
    """Counted from 1."""
    halvings: int = 0
    """How many earlier attempts ran out of GPU memory."""
    started: float = 0.0
    """Value of perf_counter at its start."""

    def tokens(self, resolved: Resolved) -> int:
        """Returns how many tokens a forward pass of a measurement has: half for each attempt that ran out of memory,
        because that may have happened in such a pass. A row that is longer has a pass of its own."""
        return max(1, resolved.micro_batch_tokens >> self.halvings)


class TrainingRun:
    """The steps of one attempt."""

    def __init__(
        self,
        bundle: Bundle,
        prepared: Prepared,
        storage: JobStorage,
        accelerator: Accelerator,
        attempt: Attempt,
        progress: TrainingProgress,
        validation: Validation,
        scratch: Path,
    ) -> None:
        self._bundle, self._prepared, self._accelerator, self._attempt = bundle, prepared, accelerator, attempt
        self._progress, self._validation, self._scratch = progress, validation, scratch
        checkpoint, self._storage = bundle.spec.training.checkpoint, storage
        self._store = CheckpointStore(
            storage,
            join(work_prefix(bundle), CHECKPOINTS),
            own_pod(),
            facts(bundle, prepared),
            (checkpoint and checkpoint.keep) or KEEP,
            attempt.number,
        )
        pace = Pace(prepared.resolved.total_steps, checkpoint.every if checkpoint else None)
        self._checkpoints: Checkpoints | NoCheckpoints = NoCheckpoints()
        if is_first():
            renewal = Renewal(storage, bundle, scratch / "prepared")
            machine = machine_of(bundle, accelerator.device)
            self._checkpoints = Checkpoints(
                self._store, pace, attempt.number, attempt.started, renewal.if_due, machine=machine
            )

    def take(self, model: PreTrainedModel, say: Callable[[str], None], until_kept: ExitStack) -> RunState:
        """Trains `model` until the last step or until early stopping. At the end it has the weights to publish.

        `say`: gets a message if the training is resumed or if a checkpoint is not used. `until_kept`: open until the
        tuned weights are kept. It defers SIGTERM from the first step on, of an adapter until it is closed: between its
        last step and then, no checkpoint has all its steps. Raises TrainerFailure GPUOutOfMemory, LossDiverged, and
        after SIGTERM Preempted, with a checkpoint of the last whole step. Raises Superseded if another attempt has
        replaced this one."""
        trainee, message = self._start(model)
        self._progress.resumed(trainee.run)
        self._progress.planned(trainee.run.plan)
        self._checkpoints.begin(trainee)
        self._note(trainee.run)
        if message:
            say(message)
        failed = True
        until_kept.enter_context(stop_deferred())
        try:
            self._take_all_or_stop(model, trainee)
            failed = False
        finally:
            phase("finishing the training")
            self._checkpoints.close(failed)
        if not isinstance(trainee.model, PeftModel):
            until_kept.close()  # the grace period is too short to keep a whole model
        self._validation.finish(model)
        return trainee.run

    def _take_all_or_stop(self, model: PreTrainedModel, trainee: Trainee) -> None:
        """Takes the steps that are left, and waits for the upload that is under way. Raises as `take` does."""
        try:
            self._take_all(model, trainee)
            self._checkpoints.finish()
            check_stop()
        except StopRequested:
            raise self._preempted(trainee) from None
        except Superseded:
            raise
        except (Exception, PeerFailed) as error:
            if (failure := failure_of(error)).reason is FailureReason.GPU_FAULT:
                # A broken GPU may end the process at any time, or hold it in the driver.
                write_failure(failure)
            self._checkpoints.finish()  # the upload is of an earlier step, with which the next attempt begins
            self._note(trainee.run)
            raise

    @property
    def _mixture(self) -> Mixture:
        sources = self._bundle.spec.dataset.train
        return Mixture.of(mixtures(self._prepared.train), [source.weight for source in sources])

    def _start(self, model: PreTrainedModel) -> tuple[Trainee, str]:
        """Returns the model and its optimizer as in the newest checkpoint, or as they are before the first step.

        Also returns the message on the checkpoints, or "" if there are none."""
        whole, prepared = self._accelerator.unwrap_model(model), self._prepared
        connect(self._accelerator.device)
        training = self._bundle.spec.training
        optimizer = make_optimizer(model, training)
        on_first(self._store.begin)
        looked = found_on_each_node(lambda: self._find(whole, optimizer), _checkpoint_of)
        assert looked is not None
        found, skipped, is_earlier = looked
        if found is None or is_earlier:
            optimizer = make_optimizer(model, training)  # `misfit` may have given the other one a state
            repeat = self._mixture.weights is not None
            own = find_plan(model, prepared.train, training, prepared.resolved, self._accelerator, repeat)
        if found:
            words = Words.model_validate_json(found.words)
            earlier = self._bundle.spec.resume_from if is_earlier else None
            sentences = [*skipped, resumption(words, earlier.name if earlier else None)]
            run = agreed(lambda: _restored(found, words, whole, optimizer))
            if earlier:
                run.plan = after_earlier_job(run.plan, own, training)
                run.halvings = 0  # the attempts of this job have not run out of memory yet
            self._validation.resume(run.curve, found.best)
            on_each_node(lambda: shutil.rmtree(self._scratch / CHECKPOINTS))
        else:
            run = RunState(own)
            sentences = [*skipped, "Training begins with the first step."] if skipped else []
            self._validation.resume(run.curve, None)
        self._use_plan(run, whole)
        return Trainee(whole, optimizer, run, lambda: self._validation.kept), " ".join(sentences)

    def _find(self, whole: nn.Module, optimizer: Optimizer) -> tuple[Found | None, list[str], bool]:
        """Returns the checkpoint to go on from, or None, a sentence for each that was skipped, and whether it is one of
        the job of spec.resumeFrom. Raises TrainerFailure SpecInvalid as `_newest_of_earlier_job` does."""
        found, skipped = self._newest(self._store, whole, optimizer)
        if found is not None or self._bundle.spec.resume_from is None:
            return found, skipped, False
        return *self._newest_of_earlier_job(whole, optimizer, skipped), True

    def _newest(self, store: CheckpointStore, whole: nn.Module, optimizer: Optimizer) -> tuple[Found | None, list[str]]:
        """Returns the newest usable checkpoint, or None, and a sentence for each that was skipped. The optimizer may
        have another state afterwards."""

        def unfit(state: Path, content: bytes) -> str | None:
            words = Words.model_validate_json(content)
            return other_records(words, state) or misfit(whole, optimizer, state, words.numbers)

        return store.newest(
            self._scratch / CHECKPOINTS,
            best_named=lambda words: Words.model_validate_json(words).best,
            misfit=unfit,
        )

    def _newest_of_earlier_job(
        self, whole: nn.Module, optimizer: Optimizer, skipped: list[str]
    ) -> tuple[Found, list[str]]:
        """Returns the newest usable checkpoint of the job of spec.resumeFrom, and `skipped` with more sentences.

        Raises TrainerFailure SpecInvalid if there is none: a training from the first step was not asked for."""
        store = earlier_store(self._bundle, self._storage, facts(self._bundle, self._prepared))
        found, more = self._newest(store, whole, optimizer)
        if found is None:
            raise no_checkpoint(self._bundle, [Unusable(why) for why in more])
        return found, [*skipped, *more]

    def _use_plan(self, run: RunState, whole: nn.Module) -> None:
        """Makes the micro-batches smaller for each earlier attempt that ran out of memory, and applies the plan."""
        training, longest = self._bundle.spec.training, int(lengths(self._prepared.train).max())
        while run.halvings < self._attempt.halvings:
            run.plan = smaller(run.plan, longest, training.gradient_checkpointing)
            run.halvings += 1
        use_gradient_checkpointing(whole, run.plan.gradient_checkpointing)

    def _take_all(self, model: PreTrainedModel, trainee: Trainee) -> None:
        """Takes the steps that are left. After SIGTERM it raises StopRequested, with the weights of the last step."""
        run, rows, validation = trainee.run, self._prepared.train, self._validation
        resolved = self._prepared.resolved.model_copy(update={"micro_batch_tokens": run.plan.micro_batch_tokens})
        self._validate(model, len(run.steps))  # an earlier attempt may have been stopped before it
        if validation.over:
            return
        for step in training_steps(
            model,
            rows,
            self._bundle.spec.training,
            resolved,
            self._accelerator,
            self._mixture,
            optimizer=trainee.optimizer,
            done=tuple(run.steps),
        ):
            run.steps.append(step)
            self._note(run)
            self._validate(model, step.number)
            self._checkpoints.after_step(trainee)
            self._note(run)
            self._progress.advance(step)
            if validation.over:
                return

    def _validate(self, model: PreTrainedModel, step: int) -> None:
        measured = self._validation.curve[-1].step if self._validation.curve else 0
        if step > measured and self._validation.due(step):
            self._progress.validated(self._validation.measure(model, step))

    def _note(self, run: RunState) -> None:
        """Tells the status and the termination message how far the training is."""
        self._progress.checkpoint_step = self._checkpoints.uploaded
        steps_done(len(run.steps), self._checkpoints.uploaded)

    def _preempted(self, trainee: Trainee) -> TrainerFailure:
        """Uploads the last whole step, and returns the failure of a pod that had to stop, whose message it leaves."""
        if seconds_left():  # else the step that was interrupted has used up the grace period
            self._checkpoints.after_sigterm(trainee)
        self._note(trainee.run)
        step = len(trainee.run.steps)
        failure = TrainerFailure(
            FailureReason.PREEMPTED,
            f"{why_stopped()} The pod stopped after step {step:,} of {self._progress.total_steps:,}. "
            f"{stored(step, self._checkpoints.uploaded)}",
            step=step,
        )
        write_failure(failure)
        self._progress.report()
        return failure


def _checkpoint_of(looked: tuple[Found | None, list[str], bool]) -> str:
    """Returns the name of the checkpoint that was found, for a comparison between nodes."""
    return looked[0].name if looked[0] else ""


def _restored(found: Found, words: Words, whole: nn.Module, optimizer: Optimizer) -> RunState:
    """Gives the model and the optimizer the state of the checkpoint. Returns the state of its run."""
    restore(whole, optimizer, found.state, words.numbers)
    return resumed(words, found.state)


def resumption(words: Words, job: str | None) -> str:
    """Returns the message that an attempt goes on from a checkpoint. `job`: the earlier job that wrote it, if any."""
    other, of_job = words.other_versions, f" of job {job}" if job else ""
    text = f"Resumed at step {words.step:,} from the checkpoint of attempt {words.attempt}{of_job}."
    return f"{text} It was written with other versions: {other}. Later steps can differ by rounding." if other else text


def stored(step: int, uploaded: int | None) -> str:
    """Returns which step is stored in the newest checkpoint, as a sentence. `step`: the last whole step."""
    if uploaded is None:
        return "There is no checkpoint."
    return "Its checkpoint is stored." if uploaded == step else f"The newest checkpoint is of step {uploaded:,}."
