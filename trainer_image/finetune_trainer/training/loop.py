"""The training loop: optimizer steps, gradient accumulation, and the check for a diverged loss."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log
from pathlib import Path
from statistics import fmean
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_api.spec.training import Training
from finetune_api.status.preflight import Resolved
from finetune_trainer.handover.mixing import Mixture
from finetune_trainer.handover.prepared import Example
from finetune_trainer.model.batches import label_count, micro_batch, micro_batches, rows_of_step
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.layers.document_dropout import document_masks
from finetune_trainer.model.layers.speedups import DEFAULT, Speedups, use_speedups
from finetune_trainer.model.loss import token_losses
from finetune_trainer.model.parameters.trainable import trainable_parameters
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import beat, phase, stepped
from finetune_trainer.pod.rank import place
from finetune_trainer.ranks.division import shares
from finetune_trainer.ranks.gradients import clip_shards, sum_gradients, without_gradient
from finetune_trainer.ranks.group import together
from finetune_trainer.ranks.shards import is_shard, lockstep, with_peers
from finetune_trainer.training.optimizer import make_optimizer
from finetune_trainer.training.schedule import learning_rate

PATIENCE = 10
"""Steps in a row with a hopeless loss after which a run counts as diverged."""
ROWS_NAMED = 8
"""Most rows that a message names."""


@dataclass(frozen=True)
class Step:
    """One completed optimizer step."""

    number: int
    """Counted from 1."""
    loss: float
    """Mean cross-entropy of the learned tokens before the update, in nats."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    tokens: int
    """Tokens of all rows of the step, prompts and answers."""
    seconds: float
    memory: int = 0
    """The most of all ranks, in bytes. On a GPU, the peak since the gradients of the step before. On a CPU, the memory
    of the process."""


def training_steps(
    model: PreTrainedModel,
    examples: Sequence[Example],
    training: Training,
    resolved: Resolved,
    accelerator: Accelerator,
    mixture: Mixture | None = None,
    *,
    speedups: Speedups = DEFAULT,
    optimizer: Optimizer | None = None,
    done: Sequence[Step] = (),
) -> Iterator[Step]:
    """Trains `model` and yields each completed step. `optimizer`: replaces the optimizer that `training` names. `done`:
    the steps that `model` and `optimizer` have behind them.

    Raises TrainerFailure LossDiverged before a loss that is not a finite number changes the weights. After SIGTERM it
    raises StopRequested before the next micro-batch; the weights are then those of the last step."""
    parameters = trainable_parameters(model)
    optimizer = optimizer or make_optimizer(model, training)
    mixture = mixture or Mixture((len(examples),))
    divergence = Divergence(model.config.get_text_config().vocab_size, [step.loss for step in done])
    phase("training", steady=True, by_steps=True)
    for step in range(len(done), resolved.total_steps):
        started = perf_counter()
        rows = [examples[i] for i in rows_of_step(mixture, training.global_batch_size, training.seed, step)]
        rate = learning_rate(
            step, resolved.learning_rate, resolved.warmup_steps, resolved.total_steps, training.scheduler
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        loss, memory = gradients_of_step(
            model, rows, resolved.micro_batch_tokens, accelerator, training.seed, step, speedups
        )
        gradient_norm = _clip(parameters, training.max_grad_norm or inf, accelerator)
        divergence.check(step + 1, loss, gradient_norm, rows)
        optimizer.step()
        # From here to the yield no rank waits for another one. An exception would leave weights that belong to no step.
        optimizer.zero_grad()
        tokens = sum(len(row.input_ids) for row in rows)
        seconds = perf_counter() - started
        stepped(step + 1, resolved.total_steps, seconds)
        yield Step(step + 1, loss, rate, gradient_norm, tokens, seconds, memory)


def _clip(parameters: Sequence[nn.Parameter], most: float, accelerator: Accelerator) -> float:
    """Scales the gradients down so that their norm is at most `most`. Returns the norm before."""
    if any(map(is_shard, parameters)):
        return clip_shards(parameters, most)
    return float(accelerator.clip_grad_norm_(parameters, most))


def gradients_of_step(
    model: nn.Module,
    rows: Sequence[Example],
    micro_batch_tokens: int,
    accelerator: Accelerator,
    seed: int,
    step: int,
    speedups: Speedups,
) -> tuple[float, int]:
    """Gives the parameters the gradient of the step, the same on every rank. Each rank takes its share of the rows. The
    arguments are those of `accumulate_gradients`. Returns its result and the largest `memory_in_use` of all ranks.

    Raises StopRequested on every rank if one of them has received SIGTERM. The gradients then mean nothing."""
    parameters = trainable_parameters(model)
    share = shares([len(row.input_ids) for row in rows], place().ranks)[place().rank]

    def take() -> tuple[float, frozenset[int], int]:
        mine = share if place().ranks > 1 else None
        with with_peers(model):
            part = accumulate_gradients(model, rows, micro_batch_tokens, accelerator, seed, step, speedups, mine)
        return part, without_gradient(parameters), memory_in_use(accelerator.device)

    parts = together(take)
    sum_gradients(parameters, frozenset.intersection(*(unused for _, unused, _ in parts)))
    return sum(part for part, _, _ in parts), max(memory for _, _, memory in parts)


def accumulate_gradients(
    model: nn.Module,
    rows: Sequence[Example],
    micro_batch_tokens: int,
    accelerator: Accelerator,
    seed: int = 0,
    step: int = 0,
    speedups: Speedups = DEFAULT,
    share: Sequence[int] | None = None,
) -> float:
    """Adds the gradient of the mean cross-entropy over all learned tokens of the rows. The gradient does not depend on
    how the rows are spread over micro-batches. `seed`, `step`: determine the dropout. Returns the mean, in nats.

    `share`: indices of the rows to compute; None for all. The gradients and the results of shares that contain each row
    once add up to those of all rows."""
    batches = micro_batches(rows, micro_batch_tokens, sharing(model).packed, accelerator.device, share)
    labels = label_count(rows)
    total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    with use_speedups(model, speedups):
        for batch, counts in lockstep(model, batches, lambda: micro_batch(rows[:1], accelerator.device)):
            with document_masks(batch, seed, step):
                with accelerator.autocast():
                    loss = token_losses(model, batch).sum() / labels * counts
                # Not accelerator.backward: it would divide by its own number of accumulation steps.
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
            beat()
    return total.item()


def memory_in_use(device: torch.device) -> int:
    """Returns the GPU's peak memory in bytes since the last call, or on a CPU the memory of the process in bytes."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Divergence:
    """Detects a diverged run. A run has diverged if its loss or gradient is not a finite number.

    It has also diverged if its loss was hopeless for ten steps in a row: above twice the mean of the first three
    steps, and above ln(vocabulary), the loss of random guessing. A run that learns anything is below the second
    bound."""

    def __init__(self, vocabulary: int, losses: Sequence[float] = ()) -> None:
        """`losses`: those of the steps that an earlier attempt has taken."""
        self._blind = log(vocabulary)
        self._first: list[float] = []
        self._hopeless: deque[bool] = deque(maxlen=PATIENCE)
        for loss in losses:
            self._note(loss)

    def check(self, step: int, loss: float, gradient_norm: float, rows: Sequence[Example]) -> None:
        """Raises TrainerFailure LossDiverged, with the step and its rows, if the run has diverged."""
        if not isfinite(loss) or not isfinite(gradient_norm):
            what = "loss" if not isfinite(loss) else "gradient"
            raise _diverged(f"The {what} of step {step} is not a finite number", step, rows)
        self._note(loss)
        if len(self._hopeless) == PATIENCE and all(self._hopeless):
            finding = f"The loss is {loss:.1f} at step {step}: worse than random guessing for {PATIENCE} steps in a row"
            raise _diverged(finding, step, rows)

    def _note(self, loss: float) -> None:
        if len(self._first) < 3:
            self._first.append(loss)
        self._hopeless.append(loss > max(2 * fmean(self._first), self._blind))


def _diverged(finding: str, step: int, rows: Sequence[Example]) -> TrainerFailure:
    named = ", ".join(row.place for row in rows[:ROWS_NAMED])
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return TrainerFailure(FailureReason.LOSS_DIVERGED, f"{finding}. Rows of this step: {named}{more}.", step=step)
