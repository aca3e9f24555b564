"""Inspects the folders of the base model and of an adapter to continue from, without loading their weights.

May import: pod, sizing, sources, rows. Never torch."""
