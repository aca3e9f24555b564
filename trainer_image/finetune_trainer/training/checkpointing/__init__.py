"""Writes the checkpoints of a training while it goes on, and the last one after SIGTERM. `run` calls `checkpoints`.

- `checkpoints`: what happens after a step, after SIGTERM and at the end.
- `account`: when a checkpoint is due, and what all of them cost.
- `copies`: the copy of the state, whether there is memory for it, and whether all ranks take part in it.
- `uploads`: the upload beside the training.
- `other_ranks`: the part of the ranks that write no checkpoints.
- `telling`: what the log says about them.
- `trainee`: what a checkpoint is taken of.
"""
