"""The optimizer's steps: `loop`, with its optimizer and schedule, the memory probe, validation, and progress.

May import: model and everything below it."""
