"""Greedy generation of a model's answers in batches.

Rows of similar length form a batch. The tokens that all prompts of a batch begin with are read once."""

from collections.abc import Sequence
from copy import copy
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.reasons import FailureReason
from finetune_trainer.base.base_model import CONTEXT
from finetune_trainer.evaluation.kept_answers import KeptAnswers
from finetune_trainer.model.isolation import sharing
from finetune_trainer.model.layers.attention import NAME
from finetune_trainer.pod.failure import failure_of
from finetune_trainer.pod.liveness.heartbeat import beat
from finetune_trainer.pod.progress import Progress
from finetune_trainer.ranks.shards import is_sharded
from finetune_trainer.rows.row_format import THOUGHT_END, final_answer
from finetune_trainer.statistics.measurements import Answer

Prompt = NDArray[np.int32]
SHARED_LEAST = 64
"""Fewest common tokens at the beginning of all prompts that are read once. For fewer tokens, one more forward pass
costs more than it saves."""


def write_answers(
    what: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    expected: Sequence[str],
    tokens: int,
    generation: GenerationConfig,
    kept: KeptAnswers | None = None,
) -> list[Answer]:
    """Returns the model's answer to each prompt, in the order of the prompts. `what`: the model's name in messages.
    `kept`: keeps the answers for later attempts while they are written, and has those of earlier ones.

    A batch has about `tokens` tokens, and fewer after the GPU has run out of memory. Rows of similar length form a
    batch, so that there is little padding. The longest rows come first, so that too little memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    answers, tokens = kept.earlier(what, tokens) if kept else ([], tokens)
    progress = Progress(f"Generating answers with {what}", "rows", len(prompts) - len(answers))
    longest = sharing(model).padded
    while len(answers) < len(order):
        waiting = order[len(answers) :]
        each = len(prompts[waiting[0]]) + generation.max_new_tokens
        rows = waiting[: max(1, tokens // each) if each <= longest else 1]
        written = generate_within_memory(model, [prompts[row] for row in rows], generation)
        if written is None:
            fewer = f"Generating {len(rows):,} answers at a time ran out of GPU memory. The next try has half as many."
            print(fewer, flush=True)
            tokens = len(rows) // 2 * each
            continue
        stop = generation.eos_token_id
        answers += [read_answer(tokenizer, answer, stop, expected[i]) for i, answer in zip(rows, written, strict=True)]
        progress.advance(len(rows))
        if kept:
            kept.written(answers, tokens)
    of_row = dict(zip(order, answers, strict=True))
    return [of_row[row] for row in range(len(prompts))]


def generate_within_memory(
    model: PreTrainedModel, prompts: Sequence[Prompt], generation: GenerationConfig
) -> list[list[int]] | None:
    """Returns the result of `generate`, or None if several prompts at a time run out of GPU memory. A model whose
    weights are sharded over the ranks is not tried again: the other ranks wait in the middle of a forward pass."""
    try:
        return generate(model, prompts, generation)
    except RuntimeError as error:
        if is_sharded(model) or len(prompts) == 1 or failure_of(error).reason is not FailureReason.GPU_OUT_OF_MEMORY:
            raise
    # The frames of the exception hold the tensors, so memory can be freed only after the except block.
    torch.cuda.empty_cache()
    return None


def generate(model: PreTrainedModel, prompts: Sequence[Prompt], generation: GenerationConfig) -> list[list[int]]:
    """Returns the tokens that the model writes after each prompt, at most as many as fit into its context.

    Padding is inserted between the shared beginning and the rest of a prompt, so that all prompts end at the same
    position."""
    shared = shared_beginning(prompts) if can_share(model) else 0
    longest = max(map(len, prompts))
    within = copy(generation)
    within.max_new_tokens = min(generation.max_new_tokens, context(model) - longest)
    input_ids = np.full((len(prompts), longest), generation.pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        for part, start in ((prompt[:shared], 0), (prompt[shared:], longest - len(prompt) + shared)):
            input_ids[row, start : start + len(part)] = part
            attention_mask[row, start : start + len(part)] = 1
    tensors = {
        "input_ids": torch.from_numpy(input_ids).to(model.device),
        "attention_mask": torch.from_numpy(attention_mask).to(model.device),
    }
    _forget_images(model)
    cache = read_beginning(model, tensors["input_ids"][:1, :shared], len(prompts)) if shared else None
    written: Tensor = model.generate(
        **tensors,
        past_key_values=cache,
        generation_config=within,
        logits_processor=LogitsProcessorList([EachToken()]),
        synced_gpus=False,  # the ranks call a sharded model together by themselves (in_step)
    )
    tokens: list[list[int]] = written[:, longest:].tolist()
    return tokens


def _forget_images(model: PreTrainedModel) -> None:
    """Makes Qwen's models with images forget by how much the images of the last batch moved the positions of each row.
    With a cache they would add this to the positions of the present batch, and fail if it has another number of rows.
    """
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None


class EachToken(LogitsProcessor):  # type: ignore[misc]
    """Beats at each token and changes nothing. The answers of one batch can take minutes."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns `scores`."""
        beat()
        return scores


def context(model: PreTrainedModel) -> float:
    """Returns the model's longest context in tokens, prompt and answer together, or inf if its config has no limit."""
    settings = model.config.get_text_config()
    return next((value for name in CONTEXT if (value := getattr(settings, name, None))), inf)


def shared_beginning(prompts: Sequence[Prompt]) -> int:
    """Returns the number of tokens that all prompts begin with. At least one token of each prompt is left over. Returns
    0 if reading the beginning once saves no time."""
    shortest = min(map(len, prompts)) - 1
    same = np.all(np.stack([prompt[:shortest] for prompt in prompts]) == prompts[0][:shortest], axis=0)
    length = shortest if same.all() else int(same.argmin())
    return length if len(prompts) > 1 and length >= SHARED_LEAST else 0


def can_share(model: PreTrainedModel) -> bool:
    """Returns whether padding between the shared beginning and the rest leaves the answers unchanged.

    It changes them if the model has a sliding window, biases by distance (MPT), or a recurrent state."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    plain = model.config._attn_implementation == NAME and set(layers) == {"full_attention"}
    return plain and not getattr(model.config.get_text_config(), "sliding_window", None)


def read_beginning(model: PreTrainedModel, input_ids: Tensor, rows: int) -> DynamicCache:
    """Returns the key-value cache of `input_ids`, shape [1, tokens], repeated for `rows` rows."""
    cache = DynamicCache(config=model.config)
    model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache


def read_answer(
    tokenizer: PreTrainedTokenizerBase, written: Sequence[int], end_tokens: Sequence[int], expected: str
) -> Answer:
    """Returns the answer up to the first end token. An answer without an end token is truncated."""
    end = next((i for i, token in enumerate(written) if token in end_tokens), None)
    # `final_answer` needs the end of a thought as text. Some tokenizers have it as a special token.
    hidden = set(tokenizer.all_special_ids) - {tokenizer.get_added_vocab().get(THOUGHT_END)}
    text = str(tokenizer.decode([token for token in written[:end] if token not in hidden])).strip()
    return Answer(text, truncated=end is None, matches=final_answer(text) == expected.strip())
