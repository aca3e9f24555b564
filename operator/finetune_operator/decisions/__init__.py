"""Decides the next action for one job: `reconcile` is a checklist over the observed world and returns a plan.

Pure: no I/O. May import: observed."""
