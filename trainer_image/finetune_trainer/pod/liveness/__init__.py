"""Whether the process still makes progress: its signs of life, and the watchdog that ends it without them.

May import: pod.termination, pod.failure, pod.rank, finetune_api."""
