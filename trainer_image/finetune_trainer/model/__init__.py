"""The model in memory: loading, attention over packed rows, the trained parameters, micro-batches, and the loss.

From the top down, each part imports only those below it:

    rehearsal, row_losses   the start of the training without weights; the loss of each row
    parameters              the weights: loaded, chosen for training, sharded, and as a file
    loss, isolation         the loss of a micro-batch; which rows can share a forward pass
    layers                  what the layers compute in place of the code of PyTorch, Transformers and PEFT
    batches                 the rows of each step, packed into micro-batches

May import: everything below it; never preflight. This package and those above it may import torch."""
