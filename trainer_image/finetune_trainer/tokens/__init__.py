"""Rows as the model reads them: rendered with the chat template, tokenized, and stored on disk.

May import: pod, sources, rows, base, copies. Never torch."""
