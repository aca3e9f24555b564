"""Finds exact duplicates, near-duplicates and their groups, and test rows that also occur in the training data.

May import: pod, sources, rows, base. Only `embeddings` imports torch, when it is asked for."""
