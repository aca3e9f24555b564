"""The upload of a checkpoint beside the training."""

from collections.abc import Callable, Mapping

from torch import Tensor

from finetune_trainer.checkpoints.background import Background
from finetune_trainer.checkpoints.store import BestWeights, CheckpointStore
from finetune_trainer.model.parameters.tensor_file import open_tensors
from finetune_trainer.pod.failure import Cancelled, Superseded
from finetune_trainer.pod.termination import stop_requested
from finetune_trainer.training.checkpointing.telling import tell_failed
from finetune_trainer.training.checkpointing.trainee import Trainee
from finetune_trainer.training.run_state import STEPS, records, words_of
from finetune_trainer.training.spent import Machine


class Uploads:
    """The uploads of one attempt, one at a time in the thread of `background`. One that fails is told in the log."""

    def __init__(
        self,
        store: CheckpointStore,
        background: Background,
        attempt: int,
        started: float,
        renew: Callable[[Callable[[int], None]], None],
        clock: Callable[[], float],
        machine: Machine,
    ) -> None:
        """`started`: value of `clock` at the start of the attempt. `renew`: called after each upload, in a thread of
        its own: no checkpoint waits for it. `machine`: that of the attempt."""
        self._store, self._background, self._attempt, self._began = store, background, attempt, started
        self._renewing, self._renew, self._clock = Background("renewal"), renew, clock
        self._machine = machine
        self.uploaded: int | None = None
        """Step of the last uploaded checkpoint, also of an earlier attempt."""
        self.count, self.shortest = 0, 0.0
        """Number of uploads of this attempt, and the seconds that the fastest of them took."""
        self._superseded: Superseded | None = None
        """Set by the upload that found checkpoints of a later pod."""

    def require_last(self) -> None:
        """Raises Superseded if an upload has found checkpoints of a later pod of the job."""
        if self._superseded is not None:
            raise self._superseded

    def end_renewal(self) -> None:
        """Ends a renewal that is under way, and lets no other begin."""
        self._renewing.cancel(0)

    def start(self, trainee: Trainee, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        """Starts the upload of the last step. `tensors` must not change before its end."""
        run = trainee.run.after(self._clock() - self._began, self._machine)
        steps, best = tuple(run.steps), _held(trainee.kept_weights())
        words = words_of(run, self._attempt, self._store.best_name(best), numbers).model_dump_json().encode()

        def upload(advance: Callable[[int], None]) -> None:
            self._upload(len(steps), lambda: {**tensors, STEPS: records(steps)}, words, best, advance)

        self._background.start(upload)

    def _upload(
        self,
        step: int,
        content: Callable[[], Mapping[str, Tensor]],
        words: bytes,
        best: BestWeights | None,
        advance: Callable[[int], None],
    ) -> None:
        try:
            started, tensors = self._clock(), content()
            try:
                self._store.write(step, lambda: open_tensors(tensors), words, best, advance)
            except Superseded as end:
                self._superseded = end
            took = self._clock() - started
            self.shortest = min(self.shortest, took) if self.count else took
            self.uploaded, self.count = step, self.count + 1
            if not (stop_requested() or self._renewing.busy):
                self._renewing.start(self._renew)
        except Cancelled:
            raise
        except Exception as error:
            tell_failed(step, error)
        finally:
            if best is not None:
                best.path.unlink(missing_ok=True)


def _held(best: BestWeights | None) -> BestWeights | None:
    """Returns the weights of the best step under a second name, because a better step replaces the file."""
    if best is None:
        return None
    second = best.path.with_name(f"uploading-{best.step}.safetensors")
    second.unlink(missing_ok=True)
    second.hardlink_to(best.path)
    return BestWeights(best.step, second)
