"""`make demo`: from nothing to an adapter that beats its base model, with every step in view.

`python -m examples.demo up|shell|down`. A map of the modules:

- `__main__`: the commands. `run`: the demo, top to bottom.
- `target`: where it runs, on the local cluster or on the one kubectl points at.
- `store`: the model and the rows in S3, and the results from there.
- `install`: the operator's chart and the tenant's namespace.
- `watch`, `view`: the job's status as it changes, and how it is shown.
- `results`: what the job has made: files, table, one ticket answered twice.
- `failure`: what to show of a job that did not end well.
- `shell`: a shell to look around in.
"""
