"""Finds out which rows can share a forward pass, by trying it on the model before the first row.

Most models separate rows in one sequence by position_ids that restart at 0. These layers do not: recurrent ones (Mamba,
linear attention, short convolutions), attention without positions (BLOOM, MPT), and attention that uses positions only
for rotations (Falcon). Such models process each row alone."""

from contextlib import nullcontext
from dataclasses import dataclass
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.reasons import FailureReason
from finetune_trainer.model.layers.attention import NAME, packed
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.ranks.shards import with_peers

LEAK = 1e-3
"""Largest difference that counts as rounding, as a share of the logits' standard deviation. Isolated documents show no
difference on the CPU. Documents that see each other show tens of percent."""
TOKENS = 16
"""Tokens of each test document."""


@dataclass(frozen=True)
class Sharing:
    """The rows that can share a forward pass."""

    packed: float = inf
    """Longest row, in tokens, that can share a sequence with other rows. A longer row is processed alone."""
    padded: float = inf
    """Longest prompt with its answer, in tokens, that can be padded to the length of others. A longer prompt is
    processed alone."""


_found: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


def sharing(model: nn.Module) -> Sharing:
    """Returns which rows can share a forward pass of this model, with or without an adapter. It tries once per model.

    Raises TrainerFailure ModelUnsupported if the result of a row depends on the rows processed before it."""
    whole: Any = getattr(model, "module", model)  # DistributedDataParallel passes nothing on
    base: PreTrainedModel = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    if base not in _found:
        training = base.training
        base.eval()
        # The adapter does not matter here, and an adapter in fp32 on a base model in bf16 would need autocast.
        with with_peers(base), whole.disable_adapter() if isinstance(whole, PeftModel) else nullcontext():
            _found[base] = _find(base)
        base.train(training)
    return _found[base]


def _find(model: PreTrainedModel) -> Sharing:
    longest = _forget_longer_rows(model)
    require_no_memory(model)
    # Logits that are not finite are reported when the loss is computed.
    leaks = leak(model) >= LEAK
    if leaks and model.config._attn_implementation == NAME:
        # This model does not pass document_lengths on to its layers. Transformers' block mask separates the documents.
        model.set_attn_implementation("sdpa")
        leaks = leak(model) >= LEAK
    seen = not padding_seen(model) < LEAK
    return Sharing(packed=0 if leaks else longest, padded=0 if seen else longest)


def describe(found: Sharing) -> str:
    """Returns sentences on what makes this model slower than others of its size, or ""."""
    sentences = []
    if not found.packed:
        sentences.append(
            "In this model rows in one sequence change each other's results, so each row is processed alone."
        )
    elif found.packed < inf:
        sentences.append(
            f"In this model a row of more than {found.packed:,.0f} tokens changes the rotary positions of all rows in "
            "its sequence, so longer rows are processed alone."
        )
    if not found.padded:
        sentences.append("Padding changes this model's answers, so its prompts are answered one by one.")
    return " ".join(sentences)


@torch.no_grad()
def require_no_memory(model: PreTrainedModel) -> None:
    """Raises TrainerFailure ModelUnsupported if a document gives other logits after the model has processed another
    document."""
    first, second = _documents(model)
    before, _, after = (_logits(model, document[None]) for document in (first, second, first))
    if _moved(before, after) >= LEAK:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{class_name(model)} keeps a state between texts: after another text, the logits of the same text "
            f"differ by {_moved(before, after):.0%} of their standard deviation. So its rows cannot be trained or "
            "measured independently.",
        )


def class_name(model: nn.Module) -> str:
    """Returns the name of the model's class in Transformers."""
    return type(model).__name__.removeprefix("FSDP")  # a sharded model has a class of its own


@torch.no_grad()
def leak(model: PreTrainedModel) -> float:
    """Returns how much a change of one document changes the logits of the next document in its sequence, as a share of
    their standard deviation."""
    first, second = _documents(model)
    positions = torch.arange(TOKENS).repeat(2)[None].to(model.device)

    def second_logits(document: Tensor) -> Tensor:
        with packed((TOKENS, TOKENS)):
            together = torch.cat([document, second])[None]
            logits = _logits(model, together, position_ids=positions, document_lengths=(TOKENS, TOKENS))
        return logits[0, TOKENS:]

    return _moved(second_logits(first), second_logits(first.flip(0)))


@torch.no_grad()
def padding_seen(model: PreTrainedModel) -> float:
    """Returns how much other padding tokens on the left of a prompt change its logits, as a share of their standard
    deviation."""
    first, second = _documents(model)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, : TOKENS // 2] = 0
    places = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    places = {name: tensor.to(model.device) for name, tensor in places.items()}

    def prompt_logits(padding: Tensor) -> Tensor:
        prompt = torch.cat([padding[: TOKENS // 2], second[TOKENS // 2 :]])
        return _logits(model, torch.stack([first, prompt]), **places)[1, TOKENS // 2 :]

    return _moved(prompt_logits(second), prompt_logits(first))


def _documents(model: PreTrainedModel) -> Tensor:
    """Returns two fixed documents of random tokens, shape [2, TOKENS]."""
    generator = torch.Generator().manual_seed(0)
    tokens: Tensor = torch.randint(model.config.get_text_config().vocab_size, (2, TOKENS), generator=generator)
    return tokens


def _logits(model: PreTrainedModel, input_ids: Tensor, **places: Any) -> Tensor:
    # The trained parameters of a model in bf16 are in fp32.
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits: Tensor = model(input_ids=input_ids.to(model.device), use_cache=False, **places).logits
    return logits.float()


def _moved(before: Tensor, after: Tensor) -> float:
    return ((before - after).abs().max() / before.std()).item()


def _forget_longer_rows(model: PreTrainedModel) -> float:
    """Returns the longest row that does not change the rotary frequencies of other rows in its sequence.

    Rotary frequencies of the type `dynamic` grow with the longest row so far. A hook resets them before each call."""
    longest = inf
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if "longrope" in _flat(kinds):
            longest = min(longest, *_originals(module.config.rope_parameters))
        if any("dynamic" in kind for kind in _flat(kinds)):
            longest = min(longest, module.original_max_seq_len)
            module.register_forward_pre_hook(_restart)
    return longest


def _flat(kinds: object) -> list[str]:
    """Returns a rotary module's rope_type as a list. It can be one string or one string for each layer type."""
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else []


def _originals(settings: dict[str, Any]) -> list[int]:
    """Returns each original_max_position_embeddings in rope_parameters, which can be nested by layer type."""
    found = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    return [part["original_max_position_embeddings"] for part in found if "original_max_position_embeddings" in part]


def _restart(module: Any, _: Any) -> None:
    if isinstance(module.rope_type, str) and module.max_seq_len_cached > module.original_max_seq_len:
        module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)
        module.max_seq_len_cached = module.original_max_seq_len
