"""Attention for rows that lie end to end in one sequence: each document sees only itself."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune_api.reasons import FailureReason
from finetune_trainer.failure import TrainerFailure

NAME = "per_document_sdpa"
LEAK = 1e-3
"""Largest difference taken for rounding, as a share of the logits' standard deviation. Isolated documents show none at
all on the CPU; one that leaks shows tens of percent."""


def per_document_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    document_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot product attention, document by document where `document_lengths` (tokens of each, in order) says
    where they lie. Query, key and value: [1, heads, tokens, head size]; returns [1, tokens, heads, head size].

    One block mask over the whole sequence is as right, and costs 45% of a training step on a CPU. It is what remains
    for models that do not hand `document_lengths` on, for generation, and for documents longer than the window."""
    windowed = sliding_window is not None and max(document_lengths or [0]) > sliding_window
    if document_lengths is None or windowed:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    # On the CPU the bf16 kernel's backward takes three times as long as the fp32 one, a fifth of a training step.
    dtype = torch.float32 if query.device.type == "cpu" and query.dtype == torch.bfloat16 else query.dtype
    tensors = [torch.split(tensor.to(dtype), list(document_lengths), dim=2) for tensor in (query, key, value)]
    with torch.autocast(query.device.type, enabled=False):
        outputs = [
            sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in zip(*tensors, strict=True)
        ]
    return torch.cat(outputs, dim=1).to(query.dtype), None


AttentionInterface.register(NAME, per_document_sdpa)
# An attention function under a new name gets no mask at all unless a mask function of that name is there too.
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_document_attention(model: PreTrainedModel) -> None:
    """Switches a model that Transformers runs on SDPA to `per_document_sdpa`; leaves others on what they need, where
    Transformers itself tells packed documents apart by their restarting position_ids."""
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if model.config._attn_implementation == "sdpa" and layers <= {"full_attention", "sliding_attention"}:
        model.set_attn_implementation(NAME)


@torch.no_grad()
def prove_isolation(model: PreTrainedModel) -> None:
    """Raises TrainerFailure ModelUnsupported unless changing one packed document leaves the next one's logits alone.
    Layers with a state that runs along the sequence (Mamba, linear attention) fail here."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(model.config.get_text_config().vocab_size, (2, 16), generator=generator)

    def second_logits(document: Tensor) -> Tensor:
        output = model(
            input_ids=torch.cat([document, second])[None].to(model.device),
            position_ids=torch.arange(16).repeat(2)[None].to(model.device),
            document_lengths=(16, 16),
            use_cache=False,
        )
        logits: Tensor = output.logits[0, 16:].float()
        return logits

    before, after = second_logits(first), second_logits(first.flip(0))
    leak = ((before - after).abs().max() / before.std()).item()
    if not leak < LEAK:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"Rows packed into one sequence change each other in this model, by {leak:.0%} of its logits' spread: "
            "it has layers that carry state from one row into the next.",
        )
