"""How often and for how long a job may be tried, and what it may cost."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.model import ApiModel, rules
from finetune_api.spec.gpu_type import Price

MAX_RETRIES, MAX_INTERRUPTIONS = 3, 100
"""Used where the spec sets none. The schema has no defaults, so that specs and their digests stay as they were written
when a default changes."""
KEEP_CHECKPOINTS_SECONDS = 7 * 24 * 3600
"""Likewise: a week."""
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Budget(ApiModel):
    """What all attempts of the job together may use."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.gpuHours) || has(self.cost)", "must set gpuHours, cost or both, for example gpuHours: 8")
        )
    )

    gpu_hours: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Largest number of hours for which the pods of the job may hold a GPU, added up over their GPUs. Default: unset,
    and there is no limit."""
    cost: Price | None = None
    """Largest cost of these hours at pricePerHour of the FineTuneProfile, as a decimal string, for example '40.00'.
    Without a price, the job stops and waits for one. Default: unset, and there is no limit."""


class RunPolicy(ApiModel):
    """How often and for how long the job may be tried, and what it may cost. These fields can be changed while the job
    runs."""

    max_retries: Annotated[int, Field(ge=0, le=100)] | None = None
    """How often the job is tried again after a failure that a retry can help with, for example a storage that did not
    answer. Also the number of interruptions in a row without progress that the job accepts. An interruption before the
    first step of an attempt, for example while it loads the model, does not count here, unless its node did not start
    it (NodeFault). Default: 3."""
    max_interruptions: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """How many interruptions the job accepts: preempted, evicted, deleted or lost pods. They are not counted as
    retries. Default: 100."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds from the first scheduled training pod until the job fails with reason DeadlineExceeded. A running attempt
    stores a checkpoint first. Waiting times count, and a suspended job fails only when it is resumed. Default: unset,
    and there is no deadline."""
    stall_timeout_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds without progress after which an attempt, or the preflight, ends with reason TrainingStalled and is tried
    again. Progress is a micro-batch of the training, one more token of the answers, or one more row in the preflight.
    Other work, such as loading the model, may show no progress for at least 300 seconds. A change has no effect once
    the preflight has started. Default: 10 times the slowest step so far, and at least 300."""
    ttl_seconds_after_finished: Seconds | None = None
    """Seconds from the end of the job until its Jobs, pods, ConfigMap, Service and NetworkPolicy are deleted. The Job
    of a cleanup that failed stays for a day after its end. The FineTuneJob is never deleted.
    Default: unset, and they are kept until the FineTuneJob is deleted."""
    keep_checkpoints_seconds: Seconds | None = None
    """Seconds from the failure of the job until its checkpoints and its other temporary objects below
    spec.output.uri/.work are deleted. A Job without a GPU deletes them. They stay longer while another job starts
    from them (resumeFrom). A change counts until their deletion begins. The temporary objects of a completed job are
    deleted at once. Default: 604800, which is a week."""
    budget: Budget | None = None
    """What all attempts together may use. A job that reaches it stores a checkpoint and is suspended with reason
    BudgetExceeded. It continues when the budget is raised. Default: unset, and there is no limit."""

    @property
    def retries(self) -> int:
        """Return max_retries or its default."""
        return MAX_RETRIES if self.max_retries is None else self.max_retries

    @property
    def interruptions(self) -> int:
        """Return max_interruptions or its default."""
        return MAX_INTERRUPTIONS if self.max_interruptions is None else self.max_interruptions

    @property
    def keep_checkpoints(self) -> int:
        """Return keep_checkpoints_seconds or its default."""
        return KEEP_CHECKPOINTS_SECONDS if self.keep_checkpoints_seconds is None else self.keep_checkpoints_seconds
