"""The preflight, which needs no GPU: `recipe` gathers and splits the rows, resolves defaults, predicts and advises.

From the top down, each part imports only those below it:

    recipe              all steps in order
    advice              what a job is told before it uses a GPU
    data, hardware      the rows of the job; whether the job fits the GPUs and the pods. Neither imports the other
    resolve, places, rehearsal  the settings that the spec leaves open; the job's URIs; the start of the training

May import: everything below it, and of checkpoints what says whether an earlier job's checkpoint fits. Never torch,
model or training."""
