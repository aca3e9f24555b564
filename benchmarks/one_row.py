"""The work of a benchmark that calculates with a single row."""

from finetune_trainer.sizing.run_time import Work


def one_row(tokens: int, steps: int) -> Work:
    """Returns the work for one row of `tokens` tokens, with all of them trained and nothing answered. `steps`: how
    often gradients are added up over GPUs."""
    return Work(
        tokens=tokens,
        labels=tokens,
        context=tokens,
        steps=steps,
        rows=1,
        micro_batches=1,
        answered=0,
        rounds=0,
        prompt_tokens=0,
        answer_tokens=0,
        answering=0,
        loads=1,
    )
