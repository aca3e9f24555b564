"""The job's files by URI, and what is temporary or published there.

Each kind of storage has a package: `s3`, `hub` and `claims`.

May import: pod, finetune_api. Contains nothing about rows, models or training."""
