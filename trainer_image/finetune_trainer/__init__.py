"""What runs in a job's pods: `python -m finetune_trainer {preflight,train} BUNDLE`.

Two recipes, each read from top to bottom: `preflight.recipe` (on a CPU, without torch) and `train.recipe` (on a GPU).
Preflight rehearses the start of the training on a model without weights, in a process of its own: `model.rehearsal`.
Packages import downward only, and import-linter holds that; each one's `__init__` says what belongs there:

    __main__        the command: how each end becomes an exit code and a termination message
    train           `train.recipe`: load, measure the base, train, measure again, publish
    results         what is left at output.uri
    evaluation      scores, comparison, gates, verdict
    training        the optimizer's steps
    checkpoints     what a later attempt takes over from an earlier one
    preflight, model    the data without a GPU; the model with one. Neither imports the other
    ranks           the processes of a training on several GPUs, and what they tell each other
    statistics      intervals, comparison, evidence
    handover        what preflight leaves for the attempts, and how rows are drawn from it
    metrics         what answers are judged by
    tokens          rows as the model reads them
    copies          duplicates and leaks
    base            the model's folder
    rows            records read as rows, checked and cleaned
    sources         data files, read record by record
    storage         the job's files by URI: S3 and local paths
    pod, sizing, randomness     the life of the process; arithmetic of memory and time; what is drawn at random
"""
