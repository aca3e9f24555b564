"""Decides the next action for one job: `reconcile` is a checklist over the observed world and returns a plan.

Pure: no I/O. May import: observed. Modules and packages import only downward, which import-linter checks:

    reconcile     the checklist
    aftermath     what is left to do for a job that has ended
    cleanups      when the checkpoints of a failed job are deleted
    plans         builds the plan of a decision
    admission     checks before the operator creates pods
    preflights    the preflight of a job
    status        what the status of the job says
    attempts      the attempts of the job
    objects       the objects of the job in the cluster
    gpu_choice    which GPU type the job uses
    plan          the result of a decision
"""
