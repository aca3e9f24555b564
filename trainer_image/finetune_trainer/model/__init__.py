"""The model in memory: loading, attention over packed rows, the trained parameters, micro-batches, and the loss.

May import: everything below it; never preflight. This package and those above it may import torch."""
