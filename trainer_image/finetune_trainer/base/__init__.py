"""Inspects the folders of the base model and of an adapter to continue from, without loading their weights.

`cache` has the base models that earlier pods have fetched. Nothing else here imports it.

May import: pod, sizing, sources, rows. Never torch."""
