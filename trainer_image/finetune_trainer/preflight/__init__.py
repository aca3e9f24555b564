"""The preflight, which needs no GPU: `recipe` gathers and splits the rows, resolves defaults, predicts and advises.

May import: everything below it, and of checkpoints what says whether an earlier job's checkpoint fits. Never torch,
model or training."""
