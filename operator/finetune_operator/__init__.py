"""The operator: watches FineTuneJobs and makes the cluster match their specs.

Packages import only downward, which import-linter checks. The `__init__` of each package says what belongs there:

    __main__    the command
    process     queue, workers, kopf's watches, supervision, probes, metrics
    cluster     assembles the world of one job and carries out a plan; the only package that calls the API server
    store       the newest known version of each watched object, in memory
    decisions   `reconcile`, the checklist that decides the next action. Pure
    observed    the observed state of one job, as plain data. Pure
"""
