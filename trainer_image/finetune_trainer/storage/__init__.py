"""The job's files by URI: S3, local paths, their keys, and what is temporary or published there.

May import: pod, finetune_api. Contains nothing about rows, models or training."""
