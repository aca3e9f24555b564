"""Which rows a model may be given at once: found out on the model itself, before it is given any.

Most models tell rows in one sequence apart by their restarting positions. Layers with a state that runs along the
sequence (Mamba, linear attention, short convolutions) do not, nor does attention that asks for no positions (BLOOM,
MPT) or takes them for its rotations only (Falcon). Their rows go through the model one by one."""

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
from finetune_trainer.model.attention import NAME, packed
from finetune_trainer.pod.failure import TrainerFailure

LEAK = 1e-3
"""Largest difference taken for rounding, as a share of the logits' standard deviation. Isolated documents show none at
all on the CPU; one that leaks shows tens of percent."""
TOKENS = 16
"""Of each document in the proofs."""


@dataclass(frozen=True)
class Sharing:
    """What may share a forward pass."""

    packed: float = inf
    """Tokens of the longest row that may lie in one sequence with others; a longer one goes alone."""
    padded: float = inf
    """Tokens of the longest prompt, with its answer, that may be padded to the length of others; a longer one goes
    alone."""


_found: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


def sharing(model: nn.Module) -> Sharing:
    """What may share a forward pass of this model, with an adapter on it or not: found out once, when first asked.

    Raises TrainerFailure ModelUnsupported where even a row alone depends on what went through the model before."""
    whole: Any = getattr(model, "module", model)  # DistributedDataParallel passes nothing on
    base: PreTrainedModel = whole.get_base_model() if isinstance(whole, PeftModel) else whole
    if base not in _found:
        training = base.training
        base.eval()
        # An adapter in fp32 over a base in bf16 would need autocast, and tells nothing about the layers.
        with whole.disable_adapter() if isinstance(whole, PeftModel) else nullcontext():
            _found[base] = _find(base)
        base.train(training)
    return _found[base]


def _find(model: PreTrainedModel) -> Sharing:
    longest = _forget_longer_rows(model)
    require_no_memory(model)
    # Logits that are no numbers are said so of when the loss is taken.
    leaks = leak(model) >= LEAK
    if leaks and model.config._attn_implementation == NAME:
        # A model that does not hand document_lengths on to its layers: Transformers' block mask tells them apart.
        model.set_attn_implementation("sdpa")
        leaks = leak(model) >= LEAK
    seen = not padding_seen(model) < LEAK
    return Sharing(packed=0 if leaks else longest, padded=0 if seen else longest)


def describe(found: Sharing) -> str:
    """What of it makes the job slower than others of its size, in sentences; "" where nothing does."""
    sentences = []
    if not found.packed:
        sentences.append("Rows packed into one sequence change each other in this model: each goes through it alone.")
    elif found.packed < inf:
        sentences.append(
            f"This model's rotary positions change beyond {found.packed:,.0f} tokens, for all that is read at once: a "
            "longer row goes through it alone."
        )
    if not found.padded:
        sentences.append("Padding changes this model's answers: its prompts are answered one by one.")
    return " ".join(sentences)


@torch.no_grad()
def require_no_memory(model: PreTrainedModel) -> None:
    """Raises TrainerFailure ModelUnsupported unless a document gives the same logits after another one has gone through
    the model."""
    first, second = _documents(model)
    before, _, after = (_logits(model, document[None]) for document in (first, second, first))
    if _moved(before, after) >= LEAK:
        raise TrainerFailure(
            FailureReason.MODEL_UNSUPPORTED,
            f"{type(model).__name__} gives the same text other logits, by {_moved(before, after):.0%} of their spread, "
            "once another has gone through it: no row can be learned or measured by itself.",
        )


@torch.no_grad()
def leak(model: PreTrainedModel) -> float:
    """How far changing one packed document moves the next one's logits, as a share of their standard deviation."""
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
    """How far other padding, on the left of a masked prompt, moves the prompt's logits, as `leak` has it."""
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
    """Two documents of random tokens, [2, TOKENS], always the same."""
    generator = torch.Generator().manual_seed(0)
    tokens: Tensor = torch.randint(model.config.get_text_config().vocab_size, (2, TOKENS), generator=generator)
    return tokens


def _logits(model: PreTrainedModel, input_ids: Tensor, **places: Any) -> Tensor:
    # What is trained on a model in bf16 is in fp32.
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits: Tensor = model(input_ids=input_ids.to(model.device), use_cache=False, **places).logits
    return logits.float()


def _moved(before: Tensor, after: Tensor) -> float:
    return ((before - after).abs().max() / before.std()).item()


def _forget_longer_rows(model: PreTrainedModel) -> float:
    """The longest row whose length does not decide the rotary frequencies of all that is read with it. Frequencies that
    grow with the row (`dynamic`) are made to forget longer rows of earlier calls."""
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
    """A rotary module's rope_type, by layer type or not, as a list."""
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else []


def _originals(settings: dict[str, Any]) -> list[int]:
    """What original_max_position_embeddings is in rope_parameters, by layer type or not."""
    found = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    return [part["original_max_position_embeddings"] for part in found if "original_max_position_embeddings" in part]


def _restart(module: Any, _: Any) -> None:
    if isinstance(module.rope_type, str) and module.max_seq_len_cached > module.original_max_seq_len:
        module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)
        module.max_seq_len_cached = module.original_max_seq_len
