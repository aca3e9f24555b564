"""The observed state of one job, as plain data: its children and pods, the state of each run, and the cause.

Pure: no I/O. May import: finetune_api. Modules and packages import only downward, which import-linter checks:

    world         the input of `reconcile`
    runs          the state of a run
    gang_ends     how a run on several nodes ended
    child_jobs    one child Job with its pods
    gangs         several pods of one run
    causes        why a run waits or has failed
    facts         what one object shows by itself
    standing      the words for the state of a run
"""
