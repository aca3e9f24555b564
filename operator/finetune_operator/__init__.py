"""The operator: watches FineTuneJobs and makes what is there match what they ask for.

Read from `reconcile` outward. Pure, tested without a cluster:

- `world`: what was observed of one job, as plain data; `pods`: what of a pod.
- `reconcile`: the checklist that decides what to do next; `admission`, `runs` and `conditions` are its concerns.
- `runs`: where a child Job stands (a `standing`), from its pod; `starting`: why a pod has not started; `endings`: why
  it failed; `own_words`: what the pod wrote in the status itself.
- `children`: the objects it asks for: Jobs, the bundle, the ServiceAccount.
- `plan`: its answer.
- `queue`: keys waiting for a worker.

The edges:

- `observe` reads one job's world: through `profiles` the profile it names, through `rivals` who else writes to its
  output, through `events` why a child does not get on. `apply` makes a plan real. `api` is the API server: nothing else
  talks to it.
- `loop`: workers, observe -> reconcile -> apply.
- `watch`: kopf; turns events into keys. The only module that knows kopf.
- `supervise`: runs workers and watches, each in a thread, and ends the process when one of them does not work;
  `probes` tells the kubelet.
"""
