"""Renders rows with the chat template, tokenizes them and stores them on disk.

May import: pod, sources, rows, base, copies. Never torch."""
