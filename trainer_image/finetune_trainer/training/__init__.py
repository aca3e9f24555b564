"""Trains a model: `loop` runs the optimizer's steps. Also the schedule, the memory probe, validation, and progress.

May import: model and everything below it."""
