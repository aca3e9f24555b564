"""Breaks things under running jobs on the whole local cluster, and measures how the jobs end. `make chaos`.

- `table`: every fault, when it is injected, and what must happen then. Start here.
- `harms`: how each fault is injected.
- `scene`: the cluster with two nodes, a proxy between pods and the API server, and lanes for tries side by side.
- `phases`: which phase a job is in, from its status and its pod's log.
- `watcher`, `pods`: what is seen of a job and of its pods.
- `trial`: one try: a job, a random moment, the fault, the job's end. `run`: many tries.
- `figures`: what the tries show, their record (`record.json`), and docs/reliability.md.
"""
