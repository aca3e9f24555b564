"""Merges the adapter into the base model's weights and measures what merging changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedTokenizerBase

from finetune_api.reasons import FailureReason
from finetune_api.spec.method import MethodType
from finetune_api.status.evaluation import Merged
from finetune_trainer.base.composite import copy_processor
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.model.parameters.loading import greedy_generation, load_model, whole_model
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.ranks.group import on_each_node
from finetune_trainer.sizing.host_memory import FILE_BYTES
from finetune_trainer.statistics.measurements import Answer, Measured

LOSS_TOLERANCE = 0.01
"""Tolerance for the change of the loss, in nats per token: 1% of the perplexity.

Rounding base plus adapter to bf16 changes the loss by much less (0.002 on SmolLM2-135M and tickets). An adapter that
was trained over 4-bit weights can exceed the tolerance (0.012 on the same data)."""
MATCH_TOLERANCE = 0.05
"""Tolerance for the change of exact match, as a share of the answered rows. Rounding can change a greedy answer where
two tokens are almost equally likely."""
ANSWERED = 50
"""Number of held-out rows that the merged model answers, spread evenly. The loss is measured on all held-out rows."""


@dataclass(frozen=True)
class MergeFolders:
    """Where the models lie."""

    base: Path
    adapter: Path
    merged: Path
    """Where the merged model is written."""


def merge(
    folders: MergeFolders,
    tuned: Measured,
    examples: Sequence[Example],
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    tokens: int,
) -> Merged:
    """Merges the adapter into the base model and writes the result to the folder `merged`. `tokens`: of a forward pass.

    Then reads the merged model back and compares it with `tuned` on `examples`. Only one model is in memory at a time.
    Raises TrainerFailure LossDiverged if the merged weights or their loss are not finite."""
    print("Merging the adapter into the base model's weights.", flush=True)
    with whole_model(folders.base):
        on_each_node(lambda: write_merged(folders, tokenizer, prepared, accelerator.device))
    merged = measure_merged(folders.merged, tokenizer, examples, prepared, accelerator, len(tuned.answers), tokens)
    return compare_merged(tuned, merged, four_bit=prepared.resolved.method is MethodType.QLORA)


def write_merged(
    folders: MergeFolders, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, device: torch.device
) -> None:
    """Writes base and adapter as one bf16 model to the folder `merged`, with the tokenizer and the evaluation's
    generation settings.

    The base model is loaded again in bf16, because merging into 4-bit weights would round the adapter to 4 bits. Raises
    TrainerFailure LossDiverged if a merged weight is not finite."""
    model = PeftModel.from_pretrained(load_model(folders.base, MethodType.LORA, device), folders.adapter)
    untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        finding = f"Merging the adapter into the base model produced weights that are not finite: {error}"
        raise TrainerFailure(FailureReason.LOSS_DIVERGED, finding) from error
    # Servers read end tokens and sampling settings from this file. save_pretrained rejects some models' own file.
    merged.generation_config = greedy_generation(merged, prepared.stop_token_ids, prepared.resolved.max_new_tokens)
    # By default only rank 0 would write, but the ranks of each node read the files of their own node.
    merged.should_save_on_this_rank = lambda is_main_process: is_main_process
    merged.save_pretrained(folders.merged, max_shard_size=FILE_BYTES)
    tokenizer.save_pretrained(folders.merged)
    copy_processor(folders.base, folders.merged)


def untie(model: PeftModel) -> None:
    """Gives the output head its own copy of weights that it shares with the embedding, if one of them has an adapter.

    An adapter that is merged into shared weights would change both layers."""
    whole = model.get_base_model()
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    adapted = isinstance(head, BaseTunerLayer) or isinstance(embedding, BaseTunerLayer)
    if adapted and head.weight is embedding.weight:
        layer = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        whole.config.get_text_config().tie_word_embeddings = whole.config.tie_word_embeddings = False


@dataclass(frozen=True, eq=False)
class MergedMeasured:
    """What was measured for the merged model on the held-out rows."""

    losses: NDArray[np.float64]
    """Summed loss of each held-out row in nats, as in Measured."""
    rows: Sequence[int]
    """Indices of the rows that the merged model answered."""
    answers: Sequence[Answer]


def measure_merged(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    prepared: Prepared,
    accelerator: Accelerator,
    answered: int,
    tokens: int,
) -> MergedMeasured:
    """Loads the weights in `folder` as a server would and measures them on `examples`.

    `answered` is the number of rows that the tuned model answered: all of them, or 0 if no metric needs answers.
    `tokens`: of a forward pass. Raises TrainerFailure LossDiverged if the loss is not a number."""
    model = load_model(folder, MethodType.LORA, accelerator.device)
    generation = greedy_generation(model, prepared.stop_token_ids, prepared.resolved.max_new_tokens)
    evaluator = Evaluator(tokenizer, tokens, generation, accelerator)
    whole = evaluator.measure("the merged model", model, examples, answers=False)
    rows = answered_rows(answered)
    answers = evaluator.answers("the merged model", model, [examples[row] for row in rows])
    return MergedMeasured(whole.losses, rows, answers)


def answered_rows(rows: int) -> list[int]:
    """Returns the indices of at most ANSWERED of `rows` rows, spread evenly."""
    count = min(rows, ANSWERED)
    return [i * rows // count for i in range(count)]


def compare_merged(tuned: Measured, merged: MergedMeasured, four_bit: bool = False) -> Merged:
    """Compares the merged with the tuned model on the same rows, and says whether the change exceeds the tolerance.

    `four_bit`: whether the tuned model was measured over a 4-bit base model."""
    loss = float(merged.losses.sum() / tuned.labels.sum())
    before, after = (
        [answer.matches for answer in answers]
        for answers in ([tuned.answers[row] for row in merged.rows], merged.answers)
    )
    loss_change = loss - tuned.loss
    match, match_change = (fmean(after), fmean(after) - fmean(before)) if merged.rows else (None, None)
    changed = abs(loss_change) > LOSS_TOLERANCE or abs(match_change or 0) > MATCH_TOLERANCE
    return Merged(
        loss=round(loss, 6),
        loss_change=round(loss_change, 6),
        rows=len(merged.rows),
        exact_match=None if match is None else round(match, 4),
        exact_match_change=None if match_change is None else round(match_change, 4),
        changed=changed,
        message=_sentence(loss_change, match_change, len(merged.rows), changed, four_bit),
    )


def _sentence(loss_change: float, match_change: float | None, rows: int, changed: bool, four_bit: bool) -> str:
    change, bounds = f"the loss by {loss_change:+.4f} nats per token", f"{LOSS_TOLERANCE:g} nats per token"
    if match_change is not None:
        change += f" and exact match on {rows:,} row{'s' if rows > 1 else ''} by {100 * match_change:+.3g} points"
        bounds += f" and {100 * MATCH_TOLERANCE:g} points"
    if not changed:
        return f"Merging changed {change}. The change is within the tolerance of {bounds}."
    over = "the 4-bit base model, as in the evaluation" if four_bit else "the base model"
    advice = f"Serve the adapter over {over}, or measure the merged weights on your own task before you use them."
    better = loss_change <= 0 and (match_change or 0) >= 0
    finding = f"Merging changed {change}. The change exceeds the tolerance of {bounds}."
    return f"{finding} {'The merged model is better.' if better else advice}"
