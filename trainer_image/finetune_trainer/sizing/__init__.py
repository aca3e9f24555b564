"""Arithmetic over a model's shape: how much memory a run takes, and how long. No I/O, no torch.

May import: finetune_api."""
