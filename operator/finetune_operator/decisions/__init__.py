"""What to do next for one job: `reconcile` is a checklist over the observed world that returns a plan.

Pure: no I/O. May import: observed."""
