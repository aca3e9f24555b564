"""The prompt format of the tuned model, exactly as in training, for prompt_format.json and the model card."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from finetune_api.spec.method import Quantization, QuantizationType
from finetune_trainer.base.previous_adapter import PLAIN_INITS
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.rows.row_format import thinks
from finetune_trainer.tokens.render import DATE

QUESTION = "What you ask"
"""Placeholder for the user's message in the rendered example."""
ASKED = [{"role": "user", "content": QUESTION}]
COMPARED = 1000
"""Approximate number of training rows whose prompts are compared to find their common beginning and end."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank accepts (MaxLoRARanks in vllm/config/lora.py), without 1."""


@dataclass(frozen=True)
class Serving:
    """The settings that a server needs."""

    chat_template: str
    """The chat template to serve with. It is published with the tokenizer."""
    template_arguments: dict[str, Any]
    """Extra arguments of the chat template, in addition to the messages."""
    rendered: str
    """The prompt that the model reads for one user message, QUESTION. "" if the rows are texts without prompts."""
    beginning: str
    """The text that every training prompt begins with. If it is longer than in `rendered`, the rows share a system
    prompt."""
    ending: str
    """The text that every training prompt ends with."""
    stop_tokens: dict[int, str]
    """Token ids that end an answer, with their text."""
    max_new_tokens: int

    @property
    def template_digest(self) -> str:
        """The template's sha256 in hexadecimal."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Returns the content of prompt_format.json. `generation` has the names of Transformers' GenerationConfig."""
        return {
            "chatTemplate": {
                "file": "chat_template.jinja",
                "sha256": self.template_digest,
                "arguments": self.template_arguments,
            },
            "example": {"messages": ASKED, "prompt": self.rendered} if self.rendered else None,
            "trainingPrompts": {"beginWith": self.beginning, "endWith": self.ending},
            "stopTokens": [{"id": token, "text": text} for token, text in self.stop_tokens.items()],
            "generation": {"do_sample": False, "max_new_tokens": self.max_new_tokens},
        }


def serving_of(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Serving:
    """Returns the prompt format of a model that was trained on `prepared`."""
    template = dated(prepared.chat_template)
    step = max(1, len(prepared.train) // COMPARED)
    rows = [prepared.train[row] for row in range(0, len(prepared.train), step)]
    arguments = template_arguments(template, fmean(thinks(row.answer) for row in rows) > 0.5)
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    beginning = shared_beginning(prompts)
    ending = shared_beginning([prompt[::-1] for prompt in prompts])[::-1]
    rendered = tokenizer.apply_chat_template(
        ASKED, chat_template=template, tokenize=False, add_generation_prompt=True, **arguments
    )
    return Serving(
        chat_template=template,
        template_arguments=arguments,
        rendered=str(rendered) if any(map(len, prompts)) else "",
        beginning=_text(tokenizer, beginning),
        ending=_text(tokenizer, ending),
        stop_tokens={token: _text(tokenizer, [token]) for token in prepared.stop_token_ids},
        max_new_tokens=prepared.resolved.max_new_tokens,
    )


def dated(template: str) -> str:
    """Returns the template with today's date replaced by the date on which the rows were rendered.

    With another date, the prompt would differ from the prompts of the training rows."""
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    return call.sub(lambda found: repr(DATE.strftime(found[2])), template)


def template_arguments(template: str, thinking: bool) -> dict[str, Any]:
    """Returns the template arguments that servers do not set by default: `enable_thinking`, if the template uses it.

    `thinking`: whether most of the training answers begin with a thought."""
    return {"enable_thinking": thinking} if "enable_thinking" in template else {}


def shared_beginning(prompts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Returns the longest common beginning of all prompts (token ids). Needs at least one prompt."""
    shared = prompts[0]
    for prompt in prompts[1:]:
        length = min(len(shared), len(prompt))
        differing = np.flatnonzero(shared[:length] != prompt[:length])
        shared = shared[: differing[0] if len(differing) else length]
    return shared


def vllm_rank(config: LoraConfig) -> int:
    """Returns the smallest --max-lora-rank that accepts this adapter."""
    return next(rank for rank in VLLM_RANKS if rank >= config.r)


@dataclass(frozen=True)
class Vllm:
    """How vLLM serves an adapter."""

    obstacles: Sequence[str]
    """Features of the adapter that vLLM does not support. Empty if vLLM can serve the adapter."""
    quantizes_alike: bool
    """Whether vLLM can quantize the base model to the same 4-bit format as in the training."""
    options: str
    """Options of `vllm serve` for the base model with this adapter. "" if there is an obstacle."""


def vllm_of(config: LoraConfig, quantization: Quantization | None) -> Vllm:
    """Returns how vLLM serves this adapter. `quantization`: the base model's quantization in the training, or None.

    vLLM's bitsandbytes loader always quantizes to NF4 with double quantization
    (vllm/model_executor/model_loader/bitsandbytes_loader.py)."""
    obstacles = vllm_obstacles(config)
    alike = bool(quantization and quantization.type is QuantizationType.NF4 and quantization.double_quant)
    bits = "--quantization bitsandbytes " if alike else ""
    options = "" if obstacles else f"{bits}--enable-lora --max-lora-rank {vllm_rank(config)}"
    return Vllm(obstacles, alike, options)


def vllm_obstacles(config: LoraConfig) -> list[str]:
    """Returns the features of the adapter that vLLM rejects or ignores (PEFTHelper in vllm/lora/peft_helper.py).

    vLLM reads one rank and one scale for the whole adapter, and does not change the base model's weights."""
    found = {
        "DoRA": config.use_dora,
        "trained biases": config.bias != "none",
        "fully trained modules (spec.method.lora.modulesToSave)": bool(config.modules_to_save),
        f"a rank above {VLLM_RANKS[-1]}": config.r > VLLM_RANKS[-1],
        "different ranks or scales per layer": bool(config.rank_pattern or config.alpha_pattern),
        "PEFT's adapters of experts": bool(config.target_parameters),
        "biases in its LoRA layers": config.lora_bias,
        f"init_lora_weights {config.init_lora_weights}, which changes the base model": (
            config.init_lora_weights not in PLAIN_INITS
        ),
    }
    return [obstacle for obstacle, there in found.items() if there]


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int] | NDArray[np.int32]) -> str:
    """Returns the tokens' text. Incomplete characters at its ends are removed."""
    text = tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text).strip("\N{REPLACEMENT CHARACTER}")
