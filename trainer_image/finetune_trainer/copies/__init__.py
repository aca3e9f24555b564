"""Rows that repeat each other: exact copies, near-duplicates, their groups, and test rows that occur in training data.

May import: pod, sources, rows, base. Only `embeddings` imports torch, when it is asked for."""
