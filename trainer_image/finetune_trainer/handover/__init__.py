"""What preflight leaves for the attempts, and how rows are drawn from it: for a step, a sample, a few-shot prompt.

May import: pod, randomness, sources, rows, base, copies, tokens, metrics. Never torch."""
