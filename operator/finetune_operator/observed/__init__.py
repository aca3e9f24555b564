"""One job as the cluster shows it, as plain data: its children and pods, how each run stands, and why.

Pure: no I/O. May import: finetune_api."""
