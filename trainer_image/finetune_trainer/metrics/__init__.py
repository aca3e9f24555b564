"""Metrics of answers: detects the kind of the answers, chooses the metrics for it, and computes their values.

May import: pod, sources, rows, tokens. Never torch."""
