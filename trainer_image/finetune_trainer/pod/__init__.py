"""The parts of the trainer that deal with its pod: files and S3, the job's status, the log, and the end of the pod.

May import: finetune_api. Contains nothing about rows, models or training."""
