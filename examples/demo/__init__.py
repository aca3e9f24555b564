"""`make demo`: starts a cluster, trains an adapter that is better than its base model, and shows every step.

The command is `python -m examples.demo up|shell|down`. The modules:

- `__main__`: the commands. `run`: the demo, top to bottom.
- `target`: the cluster of the demo: the local cluster, or the cluster of kubectl's current context.
- `store`: uploads the model and the rows to S3, and downloads the results.
- `install`: the operator's chart and the tenant's namespace.
- `watch`, `view`: follow the job's status and show it.
- `results`: shows the results: files, a table, and one ticket with both models' answers.
- `failure`: shows the logs of a failed job.
- `shell`: opens a shell for the demo's cluster.
"""
