"""The adapter merged into the base model's weights, and what merging changed."""

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
from finetune_trainer.evaluation.scoring import Evaluator
from finetune_trainer.handover.prepared import Example, Prepared
from finetune_trainer.model.loading import greedy_generation, load_model
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.statistics.measurements import Answer, Measured

SHARD_SIZE = "5GB"
"""Largest file of weights, save_pretrained's default until Transformers 5 and what hubs and object stores take well."""
LOSS_TOLERANCE = 0.01
"""Nats a token by which the merged model's loss may differ: 1% of the perplexity. Rounding the sum of base and adapter
to bf16 stays well below (0.002 on SmolLM2-135M and tickets); a base that was 4-bit while the adapter was learned does
not always (0.012 there)."""
MATCH_TOLERANCE = 0.05
"""Share of the rows answered again by which exact match may differ: greedy answers turn on near ties."""
ANSWERED = 50
"""Rows the merged model answers, spread evenly over the held-out rows; its loss is taken over all of them."""


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
) -> Merged:
    """Merges the adapter into the base model, reads the merged model back and compares it with `tuned`, both on
    `examples`. Holds one model at a time."""
    print("Merging the adapter into the base model's weights.", flush=True)
    write_merged(folders, tokenizer, prepared, accelerator.device)
    merged = measure_merged(folders.merged, tokenizer, examples, prepared, accelerator, len(tuned.answers))
    return compare_merged(tuned, merged, four_bit=prepared.resolved.method is MethodType.QLORA)


def write_merged(
    folders: MergeFolders, tokenizer: PreTrainedTokenizerBase, prepared: Prepared, device: torch.device
) -> None:
    """Writes base and adapter as one model in bf16 to the folder `merged`, with the tokenizer and the settings it was
    evaluated with. The base is loaded anew: merging into 4-bit weights would round the adapter to 4 bits too. Raises
    TrainerFailure LossDiverged where the sum is not finite."""
    model = PeftModel.from_pretrained(load_model(folders.base, MethodType.LORA, device), folders.adapter)
    untie(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        finding = f"Merging the adapter into the base model gives weights that are not finite: {error}"
        raise TrainerFailure(FailureReason.LOSS_DIVERGED, finding) from error
    # Servers take their end tokens and sampling from this file; some models' own is refused by save_pretrained.
    merged.generation_config = greedy_generation(merged, prepared.stop_token_ids, prepared.resolved.max_new_tokens)
    merged.save_pretrained(folders.merged, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folders.merged)


def untie(model: PeftModel) -> None:
    """Gives the output head weights of its own where it shares them with the embedding and one of the two has an
    adapter: merged into shared weights it would change both."""
    whole = model.get_base_model()
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    adapted = isinstance(head, BaseTunerLayer) or isinstance(embedding, BaseTunerLayer)
    if adapted and head.weight is embedding.weight:
        layer = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        whole.config.get_text_config().tie_word_embeddings = whole.config.tie_word_embeddings = False


@dataclass(frozen=True, eq=False)
class MergedMeasured:
    """The merged model on the held-out rows."""

    losses: NDArray[np.float64]
    """As Measured has them, of all rows."""
    rows: Sequence[int]
    """The rows that were answered."""
    answers: Sequence[Answer]


def measure_merged(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    prepared: Prepared,
    accelerator: Accelerator,
    answered: int,
) -> MergedMeasured:
    """Measures the weights in `folder`, read back as a server would, on `examples`, of which the tuned model `answered`
    all or, where no metric asks for answers, none. Raises TrainerFailure LossDiverged when their
    loss is not a number."""
    model = load_model(folder, MethodType.LORA, accelerator.device)
    generation = greedy_generation(model, prepared.stop_token_ids, prepared.resolved.max_new_tokens)
    evaluator = Evaluator(tokenizer, prepared.resolved.micro_batch_tokens, generation, accelerator)
    whole = evaluator.measure("the merged model", model, examples, answers=False)
    rows = answered_rows(answered)
    answers = evaluator.answers("the merged model", model, [examples[row] for row in rows])
    return MergedMeasured(whole.losses, rows, answers)


def answered_rows(rows: int) -> list[int]:
    """At most ANSWERED of `rows` rows, spread evenly."""
    count = min(rows, ANSWERED)
    return [i * rows // count for i in range(count)]


def compare_merged(tuned: Measured, merged: MergedMeasured, four_bit: bool = False) -> Merged:
    """What merging changed, on the same rows, and whether that is more than rounding. `four_bit`: whether the tuned
    model was measured over a base in 4 bits."""
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
    moved, bounds = f"the loss by {loss_change:+.4f} nats a token", f"{LOSS_TOLERANCE:g} nats"
    if match_change is not None:
        moved += f" and exact match on {rows:,} row{'s' if rows > 1 else ''} by {100 * match_change:+.3g} points"
        bounds += f" and {100 * MATCH_TOLERANCE:g} points"
    if not changed:
        return f"Merging moved {moved}, within the tolerance of {bounds}."
    over = "the base model in 4 bits, as it was measured" if four_bit else "the base model"
    advice = f"serve the adapter over {over}, or measure the merged weights on your own task first"
    better = loss_change <= 0 and (match_change or 0) >= 0
    return f"Merging changed the result: {moved}, beyond the tolerance of {bounds}" + (
        ", for the better." if better else f": {advice}."
    )
