"""The checkpoints of one attempt: after a step, after SIGTERM and at the end."""

from collections.abc import Callable, Mapping
from time import perf_counter, sleep

from torch import Tensor

from finetune_trainer.checkpoints.background import LAST_UPLOAD_SECONDS, STORAGE_SPEED, Background
from finetune_trainer.checkpoints.buffers import bytes_of
from finetune_trainer.checkpoints.pace import Pace
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.checkpoints.training_state import live_state
from finetune_trainer.model.parameters.trainable import trained_weights
from finetune_trainer.pod.liveness.heartbeat import quiet_work
from finetune_trainer.pod.termination import seconds_left, stop_requested
from finetune_trainer.ranks.shards import trains_shards
from finetune_trainer.storage.files import PATIENCE_SECONDS
from finetune_trainer.training.checkpointing.account import Account
from finetune_trainer.training.checkpointing.copies import Copies, agreed_to_copy, size_of
from finetune_trainer.training.checkpointing.telling import tell_failed, tell_no_room, tell_wait
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.checkpointing.uploads import Uploads
from finetune_trainer.training.spent import CPU, Machine

GIVEN_UP_SECONDS = 30.0
"""How long an upload that was given up may take to notice it."""
STOPPED_SECONDS = 1.0
"""The same after SIGTERM or a failure, when nothing needs its memory any more."""
LAST_COPY_SECONDS = 5.0
"""How long rank 0 waits after SIGTERM for an upload that is under way, before it copies sharded weights. The other
ranks wait ten seconds for its word (`finetune_trainer.ranks.group`)."""
PAUSE_SECONDS = 1.0
"""Pause between two tries to upload the last checkpoint after SIGTERM."""


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
        machine: Machine = CPU,
    ) -> None:
        """`started`: value of perf_counter at the start of the attempt. `renew`: called after each upload, in a
        thread of its own: no checkpoint waits for it. It writes again what else a later attempt needs, if that is old,
        and handles its own errors. Its argument is a function that it calls again and again, as `Background` says.
        `machine`: that of the attempt."""
        self._clock, self._background, self._account = clock, Background(), Account(pace, clock)
        self._copies = Copies(self._background)
        self._uploads = Uploads(store, self._background, attempt, started, renew, clock, machine)

    @property
    def uploaded(self) -> int | None:
        """Step of the last uploaded checkpoint, also of an earlier attempt."""
        return self._uploads.uploaded

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the uploads that have ended."""
        return self._background.cpu_seconds

    def begin(self, trainee: Trainee) -> None:
        """Starts the clock of the training. The first step of this attempt is still to come."""
        self._uploads.uploaded = trainee.run.resumed_from
        # AdamW has two moments for each parameter.
        self._account.begin(trainee.step, 3 * bytes_of(trained_weights(trainee.model)))

    def after_step(self, trainee: Trainee) -> None:
        """Starts a checkpoint of the last step if one is due and none is being uploaded.

        Raises Superseded if the last one has found checkpoints of a later pod of the job."""
        self._uploads.require_last()
        started, step = self._clock(), trainee.step
        due = self._account.due(step, self._uploads.count, self.cpu_seconds)
        self._copies.prepare(trainee, due)
        wanted = due and not self._background.busy and self._has_room(trainee)
        if not agreed_to_copy(trainee, wanted):
            return
        # Not inside the try: the other ranks send their shards until this one has them all, so its error must end it.
        gathered = self._gathered(trainee) if trains_shards(trainee.model) else None
        uncopied = None
        try:
            uncopied = self._take(trainee, gathered)
        except Exception as error:
            tell_failed(step, error)
        self._account.tried(step)
        waited = self._clock() - started
        self._account.waited(waited)
        tell_wait(step, waited, uncopied)

    def _has_room(self, trainee: Trainee) -> bool:
        """Returns whether there is memory for a copy, or none is needed. Sharded weights need one: without it, the
        other ranks would have to wait for the upload of each tensor."""
        if not trains_shards(trainee.model):
            return True
        size = size_of(trainee)
        if self._copies.has_room(size):
            return True
        self._account.tried(trainee.step)
        tell_no_room(trainee.step, size)
        return False

    def _gathered(self, trainee: Trainee) -> Mapping[str, Tensor]:
        """Returns a copy of the whole state. All ranks send their shards meanwhile."""
        return self._copies.copy(live_state(trainee.model, trainee.optimizer)[0])

    def _take(self, trainee: Trainee, gathered: Mapping[str, Tensor] | None) -> int | None:
        """Starts the upload of a copy, which is `gathered` if the weights are sharded. Without memory for a copy, it
        waits for the upload, and returns the size of the state in bytes."""
        tensors, numbers = live_state(trainee.model, trainee.optimizer)
        size = bytes_of(tensors)
        if gathered is not None or self._copies.has_room(size):
            self._uploads.start(trainee, gathered or self._copies.copy(tensors), numbers)
            return None
        self._uploads.start(trainee, tensors, numbers)
        # The weights must not change before they are uploaded. After SIGTERM no step follows.
        with quiet_work(PATIENCE_SECONDS):
            while not self._background.wait(PAUSE_SECONDS) and not stop_requested():
                pass
        return size

    def after_sigterm(self, trainee: Trainee) -> int | None:
        """Uploads the last step within the grace period. Returns the step of the last uploaded checkpoint, or None.

        An upload that is under way may end first, because it is a checkpoint too. No copy is needed any more, unless
        the weights are sharded."""
        self._uploads.end_renewal()  # the last checkpoint gets the whole bandwidth
        tensors: Mapping[str, Tensor]
        tensors, numbers = live_state(trainee.model, trainee.optimizer)
        if trains_shards(trainee.model):
            self._background.wait(min(LAST_COPY_SECONDS, seconds_left()))
            wanted = not self._has(trainee.step) and not self._background.busy and self._has_room(trainee)
            if not agreed_to_copy(trainee, wanted, stopping=True):
                self._background.wait(seconds_left())
                self._background.cancel(0)
                return self.uploaded
            tensors = self._copies.copy(tensors)
        self._background.wait(seconds_left())
        self._upload_last(trainee, tensors, numbers)
        self._background.cancel(0)
        return self.uploaded

    def _upload_last(self, trainee: Trainee, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """Tries to upload the last step again and again, while the grace period has time for another try.

        An upload of many gigabytes that cannot end in time is not begun: the GPU would be held for nothing."""
        step, least = trainee.step, min(self._uploads.shortest, bytes_of(tensors) / STORAGE_SPEED)
        while not self._has(step) and not self._background.busy and least < seconds_left():
            try:
                self._uploads.start(trainee, tensors, numbers)
            except Exception as error:
                tell_failed(step, error)
            self._background.wait(seconds_left())
            if not self._has(step):
                sleep(min(PAUSE_SECONDS, seconds_left()))

    def _has(self, step: int) -> bool:
        """Returns whether a checkpoint of this step or of a later one is uploaded."""
        return step <= (self.uploaded or 0)

    def finish(self) -> None:
        """Waits for the upload that is under way, but not long, and not after SIGTERM. Raises Superseded as
        `after_step` does."""
        deadline = self._clock() + LAST_UPLOAD_SECONDS
        while not self._background.wait(0.1) and self._clock() < deadline and not stop_requested():
            pass
        self._uploads.require_last()

    def close(self, failed: bool = False) -> None:
        """Gives up an upload that is under way, gives the memory back, and prints what the checkpoints cost.

        After SIGTERM, or if the training has `failed`, it hardly waits: the end has to be reported before the kubelet
        or the launcher of the ranks kills the process."""
        self._uploads.end_renewal()
        deadline = self._clock() + GIVEN_UP_SECONDS
        ended = self._background.cancel(0)
        while not (ended or failed or stop_requested()) and self._clock() < deadline:
            ended = self._background.wait(0.1)
        if ended or self._background.wait(STOPPED_SECONDS):
            self._copies.release()
        if self._uploads.count:
            self._account.tell(self._uploads.count, self.cpu_seconds)
