"""Predicts the memory and the time of a run from the shape of the model. No I/O, no torch.

May import: finetune_api."""
