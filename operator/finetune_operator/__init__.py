"""The operator: watches FineTuneJobs and makes the cluster match what they ask for.

Packages import downward only, and import-linter holds that; each one's `__init__` says what belongs there:

    __main__    the command
    process     queue, workers, kopf's watches, supervision, probes
    cluster     reads one job's world, carries out a plan; the only package that talks to the API server
    decisions   `reconcile`, the checklist that decides what to do next. Pure
    observed    one job as the cluster shows it, as plain data. Pure
"""
