"""The observed state of one job, as plain data: its children and pods, the state of each run, and the cause.

Pure: no I/O. May import: finetune_api."""
