"""The base model's folder, and that of an adapter to continue: what is in it, read from headers without loading it.

May import: pod, sizing, sources, rows. Never torch."""
