"""Finds the jobs that start from the checkpoints of an earlier job, and still need them."""

from finetune_operator.observed.facts.pods import Object
from finetune_operator.observed.world import Key
from finetune_operator.store.kept import KeptJob, unpacked


class Resumers:
    """uids of the unfinished jobs with spec.resumeFrom, by the job that they name. Not thread-safe."""

    def __init__(self) -> None:
        self._of: dict[Key, set[str]] = {}

    def replace(self, before: KeptJob | None, job: KeptJob | None) -> None:
        """Note a new version of a job; None for a job that was deleted."""
        if before is not None:
            self._of.get(_earlier(before), set()).discard(before.uid)
            if not self._of.get(_earlier(before), True):
                del self._of[_earlier(before)]
        if job is not None and job.resume_from and not job.has_ended and not job.deleting:
            self._of.setdefault(_earlier(job), set()).add(job.uid)

    def of(self, earlier: Key) -> set[str]:
        """Return the uids of the jobs that name this job."""
        return self._of.get(earlier, set())


def has_own_checkpoint(job: KeptJob) -> bool:
    """Whether an attempt of the job has stored a later checkpoint than the one with which the first attempt began.

    The records of a job with more than ten attempts may no longer show it. Then the answer is no."""
    records: list[Object] = unpacked(job.status).get("attempts", [])
    begun = [record.get("resumedFromStep") for record in records] + [job.progress.resumed_from_step]
    stored = [record.get("checkpointStep") for record in records] + [job.progress.checkpoint_step]
    first = min((step for step in begun if step is not None), default=None)
    last = max((step for step in (*begun, *stored) if step is not None), default=None)
    return first is not None and last is not None and last > first


def _earlier(job: KeptJob) -> Key:
    return job.key[0], job.resume_from
