"""The learning rate of each step."""

from math import cos, pi

from finetune_api.spec.training import Scheduler

FLOOR = 0.1
"""The cosine schedule ends at this share of the peak, as in Chinchilla (Hoffmann et al. 2022) and Llama."""


def learning_rate(
    step: int, peak: float, warmup_steps: int, total_steps: int, scheduler: Scheduler = Scheduler.COSINE
) -> float:
    """Returns the learning rate of optimizer step `step`, counted from 0: a linear warm-up, then `scheduler`.

    No step has a rate of 0. In Transformers the first step of the warm-up has."""
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
