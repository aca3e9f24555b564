"""The life of the process in its pod: signs of life, the job's status, the log, and how the pod ends.

May import: finetune_api. Contains nothing about rows, models or training."""
