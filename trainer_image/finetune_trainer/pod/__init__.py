"""What every step needs of the pod it runs in: files and S3, the job's status, the log, and the ways to end.

May import: finetune_api. Knows nothing of rows, models or training."""
