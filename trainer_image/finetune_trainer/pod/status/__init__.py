"""The job's status at the API server: how it is read and written, and how long the API server may refuse this pod.

May import: pod.liveness, pod.termination, pod.failure, finetune_api."""
