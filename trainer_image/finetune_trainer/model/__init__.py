"""The model in memory: loading, attention over packed rows, what of it is trained, micro-batches, and the loss.

May import: everything below it; never preflight. From here upwards torch is there."""
