"""Writes the checkpoints of a training while it goes on, and the last one after SIGTERM."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter, sleep

from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_api.quantity import gibibytes
from finetune_trainer.checkpoints.background import LAST_UPLOAD_SECONDS, Background
from finetune_trainer.checkpoints.buffers import MOST_PINNED, Buffers, bytes_of
from finetune_trainer.checkpoints.free_memory import has_room
from finetune_trainer.checkpoints.pace import Pace, first_cost
from finetune_trainer.checkpoints.store import BestWeights, CheckpointStore
from finetune_trainer.checkpoints.training_state import live_state
from finetune_trainer.model.tensor_file import open_tensors
from finetune_trainer.model.trainable import trained_weights
from finetune_trainer.pod.failure import Cancelled, Superseded, failure_of
from finetune_trainer.pod.heartbeat import quiet_work
from finetune_trainer.pod.termination import seconds_left, stop_requested
from finetune_trainer.ranks.group import gather
from finetune_trainer.ranks.shards import send, trains_shards
from finetune_trainer.storage.files import PATIENCE_SECONDS
from finetune_trainer.training.run_state import STEPS, RunState, records, words_of

LONG_WAIT_SECONDS = 0.1
"""A longer wait of the training for a checkpoint is told in the log."""
GIVEN_UP_SECONDS = 30.0
"""How long an upload that was given up may take to notice it."""
STOPPED_SECONDS = 1.0
"""The same after SIGTERM or a failure, when nothing needs its memory any more."""
LAST_COPY_SECONDS = 5.0
"""How long rank 0 waits after SIGTERM for an upload that is under way, before it copies sharded weights. The other
ranks wait ten seconds for its word (`finetune_trainer.ranks.group`)."""
PAUSE_SECONDS = 1.0
"""Pause between two tries to upload the last checkpoint after SIGTERM."""


@dataclass(frozen=True)
class Trainee:
    """What the steps of a run change."""

    model: nn.Module
    optimizer: Optimizer
    run: RunState
    kept_weights: Callable[[], BestWeights | None]
    """Returns the weights of the best step, if they are kept."""


class Checkpoints:
    """The checkpoints of one attempt. A checkpoint that cannot be written never fails the job."""

    def __init__(
        self,
        store: CheckpointStore,
        pace: Pace,
        attempt: int,
        started: float,
        renew: Callable[[Callable[[int], None]], None] = lambda advance: None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`started`: value of perf_counter at the start of the attempt. `renew`: called after each upload, in a
        thread of its own: no checkpoint waits for it. It writes again what else a later attempt needs, if that is old,
        and handles its own errors. Its argument is a function that it calls again and again, as `Background` says."""
        self._store, self._pace, self._attempt, self._clock, self._began = store, pace, attempt, clock, started
        self._buffers, self._background = Buffers(), Background()
        self._renewing, self._renew = Background("renewal"), renew
        self._prepared = self._allocating = False
        self.uploaded: int | None = None
        """Step of the last uploaded checkpoint, also of an earlier attempt."""
        self._superseded: Superseded | None = None
        """Set by the upload that found checkpoints of a later pod."""
        self._last, self._count, self._blocked, self._expected, self._upload_seconds = 0, 0, 0.0, 0.0, 0.0
        self._training_began = self._last_time = clock()

    def begin(self, trainee: Trainee) -> None:
        """Starts the clock of the training. The first step of this attempt is still to come."""
        run = trainee.run
        self.uploaded, self._last = run.resumed_from, len(run.steps)
        self._training_began = self._last_time = self._clock()
        # AdamW has two moments for each parameter.
        self._expected = first_cost(3 * bytes_of(trained_weights(trainee.model)))

    def after_step(self, trainee: Trainee) -> None:
        """Starts a checkpoint of the last step if one is due and none is being uploaded.

        Raises Superseded if the last one has found checkpoints of a later pod of the job."""
        self._require_last()
        started, step = self._clock(), len(trainee.run.steps)
        due = self._due(step)
        self._prepare(trainee, due)
        wanted = due and not self._background.busy and self._has_room(trainee)
        if not agreed_to_copy(trainee, wanted):
            return
        why = ""
        try:
            why = self._take(trainee)
        except Exception as error:
            print(f"{unwritten(step)} {failure_of(error).message}", flush=True)
        self._last, self._last_time, waited = step, self._clock(), self._clock() - started
        self._blocked += waited
        if waited > LONG_WAIT_SECONDS:
            print(f"Training waited {waited:.2f} s for the checkpoint of step {step:,}{why}.", flush=True)

    def _prepare(self, trainee: Trainee, due: bool) -> None:
        """Lets the uploader's thread allocate the memory for a copy after the first step, while training goes on. A
        checkpoint that is `due` waits for it, which needs no time unless it is due at once.

        The memory for a large copy, as of a whole model, is not needed until its first checkpoint, hours later."""
        if not self._prepared:
            self._prepared = True
            tensors = live_state(trainee.model, trainee.optimizer)[0]
            if (size := bytes_of(tensors)) <= MOST_PINNED and has_room(size):
                self._allocating = True
                self._background.start(lambda advance: self._allocate(tensors))
        if due and self._allocating:
            while not self._background.wait(PAUSE_SECONDS):
                pass
            self._allocating = False

    def _allocate(self, tensors: Mapping[str, Tensor]) -> None:
        with suppress(Exception):  # the first copy tries again, and tells the error
            self._buffers.allocate(tensors)

    def _has_room(self, trainee: Trainee) -> bool:
        """Returns whether there is memory for a copy, or none is needed. Sharded weights need one: without it, the
        other ranks would have to wait for the upload of each tensor."""
        if self._buffers.allocated or not trains_shards(trainee.model):
            return True
        step, size = len(trainee.run.steps), bytes_of(live_state(trainee.model, trainee.optimizer)[0])
        if has_room(size):
            return True
        self._last, self._last_time = step, self._clock()
        short = f"The pod has no memory for a copy of {gibibytes(size)}. Raise spec.compute.memory."
        print(f"{unwritten(step)} {short}", flush=True)
        return False

    def _take(self, trainee: Trainee) -> str:
        """Starts the upload of a copy. Without memory for a copy, it waits for the upload, and returns this reason."""
        tensors, numbers = live_state(trainee.model, trainee.optimizer)
        size = bytes_of(tensors)
        if self._buffers.allocated or has_room(size):
            self._start(trainee, self._buffers.copy(tensors), numbers)
            return ""
        self._start(trainee, tensors, numbers)
        # The weights must not change before they are uploaded. After SIGTERM no step follows.
        with quiet_work(PATIENCE_SECONDS):
            while not self._background.wait(PAUSE_SECONDS) and not stop_requested():
                pass
        return f", because there is no memory for a copy of {gibibytes(size)}"

    def after_sigterm(self, trainee: Trainee) -> int | None:
        """Uploads the last step within the grace period. Returns the step of the last uploaded checkpoint, or None.

        An upload that is under way may end first, because it is a checkpoint too. No copy is needed any more, unless
        the weights are sharded."""
        self._renewing.cancel(0)  # the last checkpoint gets the whole bandwidth
        step = len(trainee.run.steps)
        tensors: Mapping[str, Tensor]
        tensors, numbers = live_state(trainee.model, trainee.optimizer)
        if trains_shards(trainee.model):
            self._background.wait(min(LAST_COPY_SECONDS, seconds_left()))
            wanted = step > (self.uploaded or 0) and not self._background.busy and self._has_room(trainee)
            if not agreed_to_copy(trainee, wanted, stopping=True):
                self._background.wait(seconds_left())
                self._background.cancel(0)
                return self.uploaded
            tensors = self._buffers.copy(tensors)
        self._background.wait(seconds_left())
        while step > (self.uploaded or 0) and not self._background.busy and self._upload_seconds < seconds_left():
            try:
                self._start(trainee, tensors, numbers)
            except Exception as error:
                print(f"{unwritten(step)} {failure_of(error).message}", flush=True)
            self._background.wait(seconds_left())
            if step > (self.uploaded or 0):
                sleep(min(PAUSE_SECONDS, seconds_left()))
        self._background.cancel(0)
        return self.uploaded

    def finish(self) -> None:
        """Waits for the upload that is under way, but not long, and not after SIGTERM. Raises Superseded as
        `after_step` does."""
        deadline = self._clock() + LAST_UPLOAD_SECONDS
        while not self._background.wait(0.1) and self._clock() < deadline and not stop_requested():
            pass
        self._require_last()

    def close(self, failed: bool = False) -> None:
        """Gives up an upload that is under way, gives the memory back, and prints what the checkpoints cost.

        After SIGTERM, or if the training has `failed`, it hardly waits: the end has to be reported before the kubelet
        or the launcher of the ranks kills the process."""
        self._renewing.cancel(0)
        deadline = self._clock() + GIVEN_UP_SECONDS
        ended = self._background.cancel(0)
        while not (ended or failed or stop_requested()) and self._clock() < deadline:
            ended = self._background.wait(0.1)
        if ended or self._background.wait(STOPPED_SECONDS):
            self._buffers.release()
        if self._count:
            print(f"Checkpoints: {self.cost}.", flush=True)

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the uploads that have ended."""
        return self._background.cpu_seconds

    @property
    def cost(self) -> str:
        """What the checkpoints of this attempt cost, in words."""
        passed, cpu = self._clock() - self._training_began, self.cpu_seconds
        return (
            f"{self._count:,} uploaded. Training waited {self._blocked:.2f} s for them, and their upload took "
            f"{cpu:.2f} s of processor time: {(self._blocked + cpu) / max(passed, 1e-9):.2%} of {passed:.1f} s"
        )

    def _require_last(self) -> None:
        if self._superseded is not None:
            raise self._superseded

    def _due(self, step: int) -> bool:
        now, spent = self._clock(), self._blocked + self.cpu_seconds
        return self._pace.due(
            step,
            last=self._last,
            passed=now - self._training_began,
            waited=now - self._last_time,
            spent=spent,
            next_cost=spent / self._count if self._count else self._expected,
        )

    def _start(self, trainee: Trainee, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """Starts the upload of the last step. `tensors` must not change before its end."""
        run, best = trainee.run, self._held(trainee.kept_weights())
        step, steps = len(run.steps), tuple(run.steps)
        held = run.held_before + self._clock() - self._began
        words = words_of(run, self._attempt, held, self._store.best_name(best), numbers).model_dump_json().encode()

        def upload(advance: Callable[[int], None]) -> None:
            try:
                started, content = self._clock(), {**tensors, STEPS: records(steps)}
                try:
                    self._store.write(step, lambda: open_tensors(content), words, best, advance)
                except Superseded as end:
                    self._superseded = end
                self.uploaded, self._count, self._upload_seconds = step, self._count + 1, self._clock() - started
                if not (stop_requested() or self._renewing.busy):
                    self._renewing.start(self._renew)
            except Cancelled:
                raise
            except Exception as error:
                print(f"{unwritten(step)} {failure_of(error).message}", flush=True)
            finally:
                if best is not None:
                    best.path.unlink(missing_ok=True)

        self._background.start(upload)

    def _held(self, best: BestWeights | None) -> BestWeights | None:
        """Returns the weights of the best step under a second name, because a better step replaces the file."""
        if best is None:
            return None
        second = best.path.with_name(f"uploading-{best.step}.safetensors")
        second.unlink(missing_ok=True)
        second.hardlink_to(best.path)
        return BestWeights(best.step, second)


class NoCheckpoints(Checkpoints):
    """The checkpoints as a rank sees them that writes none: rank 0 writes those of all ranks. This one sends it its
    shards of the weights, if they are sharded."""

    def __init__(self) -> None:
        self.uploaded = None

    def begin(self, trainee: Trainee) -> None:
        """Does nothing."""

    def after_step(self, trainee: Trainee) -> None:
        """Sends the shards of this rank if rank 0 takes a checkpoint."""
        if trains_shards(trainee.model) and agreed_to_copy(trainee, False):
            send(live_state(trainee.model, trainee.optimizer)[0].values())

    def after_sigterm(self, trainee: Trainee) -> int | None:
        """Sends the shards of this rank if rank 0 takes a checkpoint. Returns None."""
        if trains_shards(trainee.model) and agreed_to_copy(trainee, False, stopping=True):
            send(live_state(trainee.model, trainee.optimizer)[0].values())
        return None

    def finish(self) -> None:
        """Does nothing."""

    def close(self, failed: bool = False) -> None:
        """Does nothing."""


def agreed_to_copy(trainee: Trainee, wanted: bool, stopping: bool = False) -> bool:
    """Returns whether rank 0 copies the state of the training now. `wanted`: whether it wants to.

    If the trained weights are sharded, every rank calls it after the same steps and gets the answer of rank 0, because
    all have to send their shards. After SIGTERM (`stopping`) a rank may be elsewhere. Then nothing is copied."""
    if not trains_shards(trainee.model):
        return wanted
    place = (stopping, len(trainee.run.steps))
    said = gather((place, wanted))
    return said[0][1] is True and all(isinstance(each, tuple) and each[0] == place for each in said)


def unwritten(step: int) -> str:
    """Returns the sentence that precedes the error of a checkpoint that was not written."""
    return f"The checkpoint of step {step:,} was not written. Training goes on, and the next checkpoint is tried again."
