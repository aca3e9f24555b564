"""Finds the jobs that start from the checkpoints of an earlier job."""

from finetune_operator.observed.world import Key
from finetune_operator.store.kept import KeptJob


class Resumers:
    """uids of the jobs with spec.resumeFrom that can still need the checkpoints of the job that they name, by that job.
    Not thread-safe."""

    def __init__(self) -> None:
        self._of: dict[Key, set[str]] = {}

    def replace(self, before: KeptJob | None, job: KeptJob | None) -> None:
        """Note a new version of a job; None for a job that was deleted."""
        if before is not None:
            self._of.get(_earlier(before), set()).discard(before.uid)
            if not self._of.get(_earlier(before), True):
                del self._of[_earlier(before)]
        if job is not None and job.resume_from and not job.deleting and (job.keep is not None or not job.has_ended):
            self._of.setdefault(_earlier(job), set()).add(job.uid)

    def of(self, earlier: Key) -> set[str]:
        """Return the uids of the jobs that name this job."""
        return self._of.get(earlier, set())


def _earlier(job: KeptJob) -> Key:
    return job.key[0], job.resume_from
