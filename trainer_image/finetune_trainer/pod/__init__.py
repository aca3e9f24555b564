"""The life of the process in its pod: signs of life, the job's status, the log, and how the pod ends.

From the top down, each part imports only those below it:

    status, progress        the job's status at the API server; the log of long work
    liveness                the signs of life, and the end of a process that shows none
    termination, failure    how the pod stops, and why it fails. `termination` imports `failure`
    rank and the others     which process this is; threads, streams, clocks and folders

May import: finetune_api. Contains nothing about rows, models or training."""
