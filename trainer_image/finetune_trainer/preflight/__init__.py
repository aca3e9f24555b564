"""The preflight, which needs no GPU: `recipe` gathers and splits the rows, resolves defaults, predicts and advises.

May import: everything below it. Never torch, model or training."""
