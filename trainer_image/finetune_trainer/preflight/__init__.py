"""The preflight, without a GPU: `recipe` gathers and splits the rows, resolves defaults, predicts, advises.

May import: everything below it. Never torch, model or training."""
