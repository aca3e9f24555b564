"""The learning rate of each step."""

from math import cos, pi

from finetune_api.spec.training import Scheduler

FLOOR = 0.1
"""Share of the peak the cosine ends on, as in Chinchilla (Hoffmann et al. 2022) and Llama."""


def learning_rate(
    step: int, peak: float, warmup_steps: int, total_steps: int, scheduler: Scheduler = Scheduler.COSINE
) -> float:
    """Learning rate of optimizer step `step`, counted from 0: linear warm-up, then as `scheduler` says. No step is
    spent at 0, as Transformers' first one is."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    match scheduler:
        case Scheduler.COSINE:
            progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
            return peak * (FLOOR + (1 - FLOOR) * (1 + cos(pi * progress)) / 2)
        case Scheduler.LINEAR:
            return peak * (total_steps - step) / (total_steps - warmup_steps)
        case Scheduler.CONSTANT:
            return peak
