"""The part of a job's status about the GPU type that the operator chose for it."""

from finetune_api.spec.gpu_type import GpuType
from finetune_api.status.fields import Message, Reason


class ChosenGpuType(GpuType):
    """A GPU type as it was in the FineTuneProfile when the operator chose it, and why it was chosen."""

    reason: Reason
    """Why the operator chose this type: Requested, OnlyType, OnlyFit, Cheapest or First."""
    message: Message
    """Why the operator chose this type, in a sentence."""
