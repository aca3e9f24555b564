"""What a later attempt takes over from an earlier one: verified folders in the storage, and the state of a training.

May import: pod, handover, model."""
