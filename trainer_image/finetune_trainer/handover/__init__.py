"""The prepared data that preflight hands over to training, and drawing rows: for a step, a sample, a few-shot prompt.

May import: pod, randomness, sources, rows, base, copies, tokens, metrics. Never torch."""
