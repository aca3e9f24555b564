"""Breaks things under running jobs on the whole local cluster, and measures how the jobs end. `make chaos`.

- `table`: every fault, when it is injected, and what must happen then. Start here.
- `harms_of_pods`, `harms_of_cluster`: how each fault is injected.
- `scene`: the cluster with two nodes, and the proxies between pods, API server and S3.
- `phases`: which phase a job is in, from its status and its pod's log.
- `trial`: one try: a job, a random moment, the fault, the job's end.
- `judge`: what a try shows. Pure.
- `record`, `page`: the tries in a file, and docs/reliability.md.
"""
